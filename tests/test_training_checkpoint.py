"""Checkpoints are whole or absent, and a damaged one says what is wrong in one line."""

from __future__ import annotations

import json
import os

import pytest
import torch
from _training_toy import ToyDataset, ToyObjective
from safetensors.torch import load_file, save_file
from torch import nn
from vqrae.training import TrainConfig, _weights, fit
from vqrae.training.checkpoint import (
    checkpoint_path,
    checkpoints,
    latest,
    load_state,
    write_checkpoint,
)


@pytest.fixture(autouse=True)
def one_thread():
    """The toy's tensors are too small to be worth a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write(run, step, *, keep=2, text="x", fail=False):
    def put(directory):
        (directory / "a.bin").write_text(text)
        if fail:
            raise KeyboardInterrupt
        (directory / "b.bin").write_text(text)

    return write_checkpoint(run, step, put, rank=0, world_size=1, keep=keep)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_checkpoint_is_whole_or_absent(tmp_path):
    assert latest(tmp_path) is None
    write(tmp_path, 3)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 7, fail=True)
    assert latest(tmp_path).name == "step-00000003"
    write(tmp_path, 7)
    assert latest(tmp_path).name == "step-00000007"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000007",
    ]


def test_the_newest_stay(tmp_path):
    for step in (99_999_999, 1, 100_000_000, 5):
        write(tmp_path, step, keep=3)
    names = [int(p.name.split("-")[1]) for p in checkpoints(tmp_path)]
    assert names == [5, 99_999_999, 100_000_000]


def test_missing_and_short_files_are_named(tmp_path):
    path = write(tmp_path, 3)
    (path / "a.bin").write_text("")
    with pytest.raises(ValueError) as error:
        latest(tmp_path)
    assert "a.bin has 0 bytes, not 1; remove that folder" in one_line(error)
    os.unlink(path / "a.bin")
    with pytest.raises(ValueError) as error:
        latest(tmp_path)
    assert "a.bin is missing" in one_line(error)
    (path / "checkpoint.json").write_text("{")
    with pytest.raises(ValueError) as error:
        latest(tmp_path)
    assert "checkpoint.json" in one_line(error)


def test_state_is_read_without_running_it(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "hacked"),))

    torch.save({"step": Evil()}, tmp_path / "rank.pt")
    with pytest.raises(ValueError) as error:
        load_state(tmp_path / "rank.pt")
    assert "rank.pt" in one_line(error)
    assert not (tmp_path / "hacked").exists()
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"cannot read .*text\.pt"):
        load_state(tmp_path / "text.pt")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4, bias=False)
        self.b = nn.Linear(3, 4, bias=False)
        self.b.weight = self.a.weight
        base = torch.arange(12.0)
        self.register_buffer("low", base[:6])
        self.register_buffer("high", base[6:])
        self.register_buffer("turned", torch.arange(6.0).view(2, 3).t())
        self.teacher = nn.Linear(2, 2)


def test_tied_tensors_are_written_once_and_come_back_tied(tmp_path):
    module, path = Tied(), tmp_path / "m.safetensors"
    _weights.save(module.state_dict(), path, ("teacher.",))
    assert sorted(load_file(path)) == ["a.weight", "high", "low", "turned"]
    other = Tied()
    with torch.no_grad():
        other.low.zero_()
        other.turned.zero_()
    _weights.load_into(other, path, ("teacher.",))
    assert other.b.weight is other.a.weight
    for name in ("a.weight", "b.weight", "low", "high", "turned"):
        assert torch.equal(other.state_dict()[name], module.state_dict()[name]), name


def test_what_is_too_large_for_one_file_is_written_to_several(tmp_path):
    module, path = Tied(), tmp_path / "m.safetensors"
    _weights.save(module.state_dict(), path, ("teacher.",), shard_bytes=60)
    index = json.loads((tmp_path / "m.safetensors.index.json").read_text())
    files = [f"m-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*files, "m.safetensors.index.json"]
    names = [{"low", "high"}, {"turned"}, {"a.weight"}]
    for file, inside in zip(files, names, strict=True):
        assert set(load_file(tmp_path / file)) == inside
    assert index["weight_map"] == {n: f for f, ns in zip(files, names, strict=True) for n in ns}
    assert index["metadata"]["total_size"] == 30 * 4
    other = Tied()
    with torch.no_grad():
        other.a.weight.zero_(), other.low.zero_()
    _weights.load_into(other, path, ("teacher.",))
    assert other.b.weight is other.a.weight
    for name in ("a.weight", "b.weight", "low", "high", "turned"):
        assert torch.equal(other.state_dict()[name], module.state_dict()[name]), name


def test_missing_and_damaged_shards_are_named(tmp_path):
    path = tmp_path / "m.safetensors"
    _weights.save({name: torch.ones(4) for name in "abc"}, path, shard_bytes=16)
    assert set(_weights.read(path)) == set("abc")
    second = tmp_path / "m-00002-of-00003.safetensors"
    save_file({"x": torch.ones(1)}, second)
    with pytest.raises(ValueError, match=r"m-00002-of-00003\.safetensors lacks b; ") as error:
        _weights.read(path)
    second.unlink()
    with pytest.raises(ValueError, match=r"m-00002-of-00003\.safetensors is missing; ") as error:
        _weights.read(path)
    one_line(error)
    (tmp_path / "m.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cannot read .*index\.json \(KeyError\)"):
        _weights.read(path)


def test_a_run_resumes_from_shards_as_from_one_file(tmp_path):
    def run(name, steps, **changes):
        options = {"batch_size": 4, "schedule": "constant", "device": "cpu", "ema": 0.5, **changes}
        config = TrainConfig(steps=steps, **options)
        fit(ToyObjective(noise=0.1), ToyDataset(), config, tmp_path / name, recipe="toy")
        return checkpoint_path(tmp_path / name, steps)

    run("parted", 3, shard_bytes=600)
    parted, whole = run("parted", 5, shard_bytes=600), run("whole", 5)
    for name in ("model", "optimizer", "critic", "critic_optimizer", "average"):
        assert (whole / f"{name}.safetensors").is_file()
        assert (parted / f"{name}.safetensors.index.json").is_file()
        a, b = (_weights.read(folder / f"{name}.safetensors") for folder in (whole, parted))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
    lost = next(parted.glob("model-00002-of-*.safetensors"))
    lost.unlink()
    with pytest.raises(ValueError) as error:
        run("parted", 6)
    assert f"checkpoint file {lost} is missing; remove that folder" in one_line(error)


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"weight": torch.zeros(2, 3), "extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError) as error:
        _weights.load_into(nn.Linear(4, 2), path)
    message = one_line(error)
    for part in ("m.safetensors", "missing keys bias", "unexpected keys extra",
                 "weight is (2, 3), the model's is (2, 4)"):  # fmt: skip
        assert part in message
    path.write_bytes(b"\x08")
    with pytest.raises(ValueError, match="cannot read"):
        _weights.load_into(nn.Linear(4, 2), path)


def test_a_run_whose_checkpoint_lacks_keys_says_so(tmp_path):
    def config(steps):
        return TrainConfig(steps=steps, batch_size=4, device="cpu")

    fit(ToyObjective(), ToyDataset(), config(2), tmp_path, recipe="toy")
    path = checkpoint_path(tmp_path, 2)
    file = path / "model.safetensors"
    tensors = load_file(file)
    del tensors["hidden.weight"]
    _weights.save(tensors, file)
    manifest = json.loads((path / "checkpoint.json").read_text())
    manifest["files"]["model.safetensors"] = file.stat().st_size
    (path / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError) as error:
        fit(ToyObjective(), ToyDataset(), config(3), tmp_path, recipe="toy")
    message = one_line(error)
    assert "hidden.weight" in message and "model.safetensors" in message and "--run" in message
