"""What a step would hold, beside what it holds."""

import os
import subprocess
import sys
from pathlib import Path

import _step_memory as small
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from vqrae.assets import nano_folder
from vqrae.scripts.main import main
from vqrae.training._live_memory import LiveMemory
from vqrae.training.memory import step_memory

MIB = 2**20


def test_live_memory_counts_what_is_alive_at_once():
    with FakeTensorMode():
        live = LiveMemory({"all": {}, "half": {"kept": 0.5}})
        with live:
            kept = torch.empty(MIB, dtype=torch.uint8)
            live.hold([kept], "kept")
            view = kept[: MIB // 2]  # a view holds nothing of its own
            for _ in range(3):
                passing = torch.empty(2 * MIB, dtype=torch.uint8)
                del passing
            del view
    assert live.peaks == {"all": 3 * MIB, "half": 2.5 * MIB}
    assert live.live["kept"] == MIB and live.live["other"] == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
@pytest.mark.parametrize("stage, count", [(1, 32), (2, 24)])
def test_the_estimate_is_within_15_percent_of_the_truth(stage, count):
    estimate = step_memory(lambda: small.build(stage), small.batch, small.TRAIN, count).peaks[0]
    # Freed blocks go back at once: what is measured is what was asked for.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    measured = subprocess.run(
        [sys.executable, small.__file__, str(stage), str(count)],
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    truth = int(measured.stdout)
    assert truth > 150 * MIB
    assert abs(estimate / truth - 1) < 0.15


def plan(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(["plan", *arguments])
    return status, *capsys.readouterr()


def test_plan_names_a_stage_and_a_micro_batch_that_fit(capsys):
    vfm = str(nano_folder("vfm"))
    small_run = ("--codebook-size", "64", "--code-dim", "16", "--train.batch-size", "16")
    whole = ("tokenizer-1", "--vfm", vfm, "--loss.perceptual", "none", *small_run)
    status, out, _ = plan(capsys, *whole, "--gpus", "2", "--memory", "8")
    assert status == 0
    assert "micro-batches of 8, accumulation 1: --train.engine deepspeed" in out
    assert "zero0" in out  # ZeRO 1 and 2 add a bucket of 2 GB
    status, out, _ = plan(capsys, *whole, "--gpus", "2", "--memory", "0.003")
    assert status == 0 and out.endswith("not even one sample at a time.\n")
    # As the recipe is: Muon, so one process without ZeRO.
    status, out, _ = plan(capsys, "scenes-tokenizer-1", "--vfm", vfm, "--gpus", "1")
    assert status == 0 and "zero" not in out and "accumulation 1" in out
    # Its second stage, with teacher and critic, holds more.
    stage2 = ("--stage1", str(nano_folder("tokenizer")), "--perceptual-vfm", vfm, "--gpus", "1")
    _, more, _ = plan(capsys, "scenes-tokenizer-2", *stage2)
    assert float(more.splitlines()[-2].split()[1]) > float(out.splitlines()[-2].split()[1])


def test_a_smaller_micro_batch_is_named_where_memory_is_short(capsys):
    vfm = str(nano_folder("vfm"))
    arguments = ("scenes-tokenizer-1", "--vfm", vfm, "--gpus", "1", "--train.batch-size", "512")
    lines = plan(capsys, *arguments, "--memory", "80")[1].splitlines()
    peak = float(lines[-2].split()[1])
    room = str(peak * 0.7 / 0.9)
    last = plan(capsys, *arguments, "--memory", room)[1].splitlines()[-1]
    assert "micro-batches of 256, accumulation 2: --train.accumulation 2" in last


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["scenes-unified", "--tokenizer", "x"], "only those of the tokenizer"),
        (["siglip2-256-1", "--gpus", "7"], "which 7 GPUs do not divide"),
        (["siglip2-256-1", "--memory", "0"], "at least one of some"),
        (["tokenizer-1", "--vfm", "no/where"], "no/where"),
        (["tokenizer-2"], "name the folder of stage 1's"),
    ],
)
def test_plan_says_what_is_wrong(capsys, arguments, words):
    status, _, err = plan(capsys, *arguments)
    assert status == 2 and words in err and err.count("\n") == 1
