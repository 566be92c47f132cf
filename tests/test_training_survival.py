"""What a long run meets: signals in a row, kill -9 in a save, a full disk, a dead loader."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from _training_toy import ToyDataset, ToyObjective
from test_training_loop import At, config, rows
from vqrae.training import TrainingStopped, fit
from vqrae.training._watch import Interruption
from vqrae.training.checkpoint import checkpoints
from vqrae.training.engine import TorchEngine
from vqrae.training.logging import RunLog


@pytest.fixture(autouse=True)
def one_thread():
    """The toy's tensors are too small to be worth a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toy(run, *, objective=None, dataset=None, hooks=(), **changes):
    objective = objective or ToyObjective(noise=0.1)
    dataset = dataset or ToyDataset()
    return fit(objective, dataset, config(**changes), run, recipe="toy", hooks=hooks)


def steps_saved(run):
    return [int(path.name.split("-")[1]) for path in checkpoints(run)]


def hidden(run):
    return [path for path in run.rglob("*") if path.name.startswith(".")]


# ---- signals


def test_sigterms_in_a_row_that_reach_the_loader_lose_nothing(tmp_path, monkeypatch):
    """As torchrun and Slurm send them: to the whole group, and again during the save."""

    def terminate(*_):
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    save = TorchEngine.save
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    toy(whole, num_workers=1)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(TorchEngine, "save", lambda *args: (save(*args), terminate()))
        toy(cut, num_workers=1, save_every=0, hooks=[At(6, terminate)])
    assert end.value.code == 0 and steps_saved(cut) == [7] and not hidden(cut)
    assert not multiprocessing.active_children()
    assert toy(cut, num_workers=1).resumed_from == 7
    assert rows(cut) == rows(whole)


def test_a_second_ctrl_c_acts_at_once():
    # Shells start what runs in the background with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        asked = interruption.asked
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert asked


# ---- kill -9

CHILD = """
import multiprocessing, os, signal, sys
from vqrae.training.engine import TorchEngine
from test_training_survival import toy

save = TorchEngine.save

def half(engine, folder):
    save(engine, folder)
    if "10" in folder.name:
        (folder / "optimizer.safetensors").unlink()
        print(*(p.pid for p in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

TorchEngine.save = half
toy(sys.argv[1], num_workers=2)
"""


def test_killed_in_a_save_it_goes_on_from_the_checkpoint_before(tmp_path):
    run = tmp_path / "cut"
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(run)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert steps_saved(run) == [5] and len(hidden(run)) == 1
    workers = [Path(f"/proc/{pid}/status") for pid in child.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(alive(status) for status in workers):
        assert time.monotonic() < deadline, "loader processes outlive the training process"
        time.sleep(0.1)
    assert toy(run, num_workers=2).resumed_from == 5
    assert not hidden(run)
    toy(tmp_path / "whole", num_workers=2)
    assert rows(run) == rows(tmp_path / "whole")


def alive(status: Path) -> bool:
    try:
        return "\tZ (zombie)" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- a full disk


@contextmanager
def room_for(size: int):
    """Files cannot grow beyond this, as on a full disk."""
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))


WRITERS = {
    "weights": (TorchEngine, "save", 1000, "checkpoints/step-00000010", 5),
    "state": ("vqrae.training.loop", "save_state", 1000, "checkpoints/step-00000010", 5),
    "export": (ToyObjective, "export", 500, "final", 12),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_costs_no_checkpoint(writer, tmp_path, monkeypatch):
    owner, name, size, file, saved = WRITERS[writer]
    owner = sys.modules[owner] if isinstance(owner, str) else owner
    write, calls = getattr(owner, name), []

    def full(*args):
        calls.append(args)
        if saved == 5 and not steps_saved(tmp_path):
            return write(*args)
        with room_for(size):
            return write(*args)

    with monkeypatch.context() as patch, pytest.raises(TrainingStopped) as error:
        patch.setattr(owner, name, full)
        toy(tmp_path)
    message = str(error.value)
    assert "\n" not in message and calls
    assert message.startswith(f"cannot write {tmp_path / file}: ")
    assert "make room there and run the same command to go on" in message
    assert steps_saved(tmp_path)[-1] == saved and not hidden(tmp_path)
    assert not (tmp_path / "final").exists()
    assert toy(tmp_path).resumed_from == saved
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 13))


def test_a_row_that_finds_no_room_is_one_line(tmp_path, monkeypatch):
    row = RunLog.row

    def full(log, values):
        if values["step"] == 8:
            log._file = open("/dev/full", "a")  # noqa: SIM115
        row(log, values)

    with monkeypatch.context() as patch, pytest.raises(TrainingStopped) as error:
        patch.setattr(RunLog, "row", full)
        toy(tmp_path)
    file = tmp_path / "metrics.jsonl"
    assert str(error.value).startswith(f"cannot write {file}: No space left on device; make room")
    assert toy(tmp_path).resumed_from == 5
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 13))


# ---- loader processes


def test_a_dead_loader_process_is_one_line_and_the_run_goes_on(tmp_path):
    def kill(_state):
        multiprocessing.active_children()[0].kill()
        time.sleep(0.2)

    cut = tmp_path / "cut"
    with pytest.raises(TrainingStopped, match=r"^loader process \d+ died \(.*illed.*num_workers"):
        toy(cut, num_workers=2, hooks=[At(6, kill)])
    assert not multiprocessing.active_children()
    assert toy(cut, num_workers=2).resumed_from == 5
    toy(tmp_path / "whole", num_workers=2)
    assert rows(cut) == rows(tmp_path / "whole")


class Broken(ToyDataset):
    def __iter__(self):
        yield from (sample for sample, _ in zip(super().__iter__(), range(20), strict=False))
        raise ValueError("2 of 20 samples are bad, 's-1' in a.tar; raise max_bad_share")


def test_a_mistake_found_in_a_loader_process_is_one_line(tmp_path):
    with pytest.raises(ValueError) as error:
        toy(tmp_path, dataset=Broken(), num_workers=1)
    assert str(error.value) == "2 of 20 samples are bad, 's-1' in a.tar; raise max_bad_share"
