"""A run goes on with another number of processes: on the same samples, with the same losses."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from _training_ranks import MOVED, settings
from _training_toy import ToyDataset, ToyObjective, ToyStream
from vqrae.training import _weights, fit, read_metrics
from vqrae.training._data import make_loader, reader_states
from vqrae.training._other_ranks import seed_after
from vqrae.training.checkpoint import checkpoint_path, load_rank, save_state
from vqrae.training.logging import Window

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def one_thread():
    """The toy's tensors are too small to be worth a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two steps each by two processes, by one, and by two again; and six by plain torch."""
    pytest.importorskip("deepspeed")
    out = tmp_path_factory.mktemp("runs")
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env["OMP_NUM_THREADS"] = "1"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for step, start in ((2, torchrun), (4, []), (6, torchrun)):
        names = [f"{name}/{step}" for name in MOVED]
        command = [sys.executable, *start, "_training_ranks.py", str(out), *names]
        child = subprocess.run(
            command, cwd=HERE, env=env, capture_output=True, text=True, timeout=400
        )
        assert child.returncode == 0, child.stderr[-4000:]
    torch.set_num_threads(1)
    fit(ToyObjective(edit=True), ToyStream(seed=3), settings(6, "torch"), out / "whole", recipe="t")
    return out


@pytest.mark.parametrize("name", MOVED)
def test_two_processes_one_and_two_again_equal_one(runs, name):
    wanted, got = read_metrics(runs / "whole"), read_metrics(runs / name)
    assert [row["step"] for row in got] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(wanted, got, strict=True):
        for key in a.keys() - {"seconds", "images_per_s"}:
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6), (a["step"], key)
    for file in ("model", "optimizer", "critic", "critic_optimizer"):
        a, b = (
            _weights.read(checkpoint_path(runs / run, 6) / f"{file}.safetensors")
            for run in ("whole", name)
        )
        assert a.keys() == b.keys()
        for key in a.keys() - {"seen"}:  # which counts micro-batches
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", MOVED)
def test_each_step_has_the_samples_of_an_uninterrupted_run(runs, name):
    files = [file.read_text() for file in runs.glob(f"{name}-*-of-*.txt")]
    noted = [line.split() for text in files for line in text.splitlines()]
    stream = iter(ToyStream(seed=3))
    for step in range(6):
        wanted = [sample["key"] for sample in islice(stream, 8)]
        assert sorted(key for s, key in noted if s == str(step)) == sorted(wanted)


def test_workers_lose_and_double_nothing():
    """Two ranks with two workers each, and then one with two."""

    def loader(dataset, rank, world_size):
        dataset.rank, dataset.world_size = rank, world_size
        return make_loader(dataset, 2, ToyObjective().collate, 2, 0, torch.device("cpu"))

    found, states = [], []
    for rank, batches in ((0, 3), (1, 4)):
        part = loader(ToyStream(), rank, 2)
        found += [key for batch in islice(part, batches) for key in batch["keys"]]
        states.append(part.state_dict())
    merged = ToyStream().merge_states(reader_states(states))
    assert merged["position"] == 7 and merged["taken"] == [[13, 14, 7, 16]]
    alone = ToyStream()
    alone.load_state_dict(merged)
    for batch in loader(alone, 0, 1):
        found += batch["keys"]
        if len(found) == 80:
            break
    assert Counter(found) == Counter(sample["key"] for sample in islice(ToyStream(), 80))


def test_what_the_ranks_have_logged_is_added_up():
    windows = [Window() for _ in range(2)]
    windows[0].add({"loss": 1.0})
    windows[0].add({"loss": 2.0, "grad": 5.0})
    windows[1].add({"loss": 6.0})
    for units, window in enumerate(windows, 3):
        window.units = units
    one = Window()
    one.load_state_dict(Window.merged([window.state_dict() for window in windows]))
    assert one.take() == ({"loss": 3.0, "grad": 5.0}, 7)


def test_a_dataset_without_merge_states_starts_over_and_says_so(tmp_path, caplog):
    fit(ToyObjective(), ToyDataset(), settings(2, "torch"), tmp_path, recipe="t")
    folder = checkpoint_path(tmp_path, 2)
    save_state(load_rank(folder, 0), folder / "rank-00001.pt")
    manifest = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**manifest, "world_size": 2}))
    with caplog.at_level(logging.INFO):
        result = fit(ToyObjective(), ToyDataset(), settings(3, "torch"), tmp_path, recipe="t")
    assert result.resumed_from == 2
    assert "ToyDataset has no merge_states to say where its 2 readers stood" in caplog.text
    (folder.parent / "step-00000003").rename(tmp_path / "aside")
    (folder / "rank-00001.pt").unlink()
    with pytest.raises(ValueError, match=r"rank-00001.pt is missing; remove that folder") as error:
        fit(ToyObjective(), ToyDataset(), settings(4, "torch"), tmp_path, recipe="t")
    assert "\n" not in str(error.value)


def test_seeds_differ_by_rank_and_step():
    places = [(0, 5, 0), (0, 5, 1), (0, 6, 0), (1, 5, 0)]
    assert len({seed_after(*place) for place in places}) == 4
    assert seed_after(0, 5, 0) == seed_after(0, 5, 0) < 2**63
