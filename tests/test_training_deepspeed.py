"""DeepSpeed says what plain torch says: one process or two, ZeRO 0 to 3, with save and resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from vqrae import deepspeed_configs
from vqrae.training import TrainConfig, read_metrics
from vqrae.training._deepspeed import settings
from vqrae.training.checkpoint import checkpoint_path

pytest.importorskip("deepspeed")

HERE = Path(__file__).parent
STAGES = ("zero0", "zero1", "zero2", "zero3")
ALONE = ("zero0", "zero2", "zero3_offload")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By two processes, by one and by plain torch: three steps, and then three more."""
    out = tmp_path_factory.mktemp("runs")
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env["OMP_NUM_THREADS"] = "1"
    script = str(HERE / "_training_ranks.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # "mixed" takes one run through another stage every two steps.
    commands = [
        [*torchrun, script, str(out / "two"), *STAGES, "mixed"],
        [sys.executable, script, str(out / "one"), "torch", *ALONE],
    ]
    children = [
        subprocess.Popen(command, cwd=HERE, env=env, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for child in children:
        _, stderr = child.communicate(timeout=300)
        assert child.returncode == 0, stderr[-4000:]
    return out


def compare(runs, name):
    wanted, got = read_metrics(runs / "one" / "torch"), read_metrics(runs / name)
    assert [row["step"] for row in got] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(wanted, got, strict=True):
        for key in ("loss", "distance", "grad_norm", "lr", "lr_vectors"):
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6), (name, a["step"], key)
        if "loss_critic" in a:
            assert a["loss_critic"] == pytest.approx(b["loss_critic"], rel=1e-5, abs=1e-6)
    for file in ("model", "optimizer", "critic", "critic_optimizer"):
        a, b = (
            load_file(checkpoint_path(runs / run, 6) / f"{file}.safetensors")
            for run in ("one/torch", name)
        )
        assert a.keys() == b.keys(), (name, file)
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5, msg=f"{name} {key}")


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_equal_plain_torch(runs, stage):
    compare(runs, f"two/{stage}")


@pytest.mark.parametrize("stage", ALONE)
def test_one_process_equals_plain_torch(runs, stage):
    compare(runs, f"one/{stage}")


def test_a_run_may_change_its_stage(runs):
    compare(runs, "two/mixed")


def test_the_export_is_whole(runs):
    wanted = load_file(runs / "one" / "torch" / "final" / "out.st")
    for stage in STAGES:
        got = load_file(runs / "two" / stage / "final" / "out.st")
        for key, value in wanted.items():
            torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-5)


def config(**changes):
    return TrainConfig(**{"steps": 1, "batch_size": 12, "engine": "deepspeed", **changes})


def test_the_runs_numbers_are_merged_in():
    merged = settings(config(deepspeed="zero2", accumulation=3, clip=0.0), world_size=2)
    assert merged["gradient_clipping"] == 0.0  # always written
    assert merged["train_micro_batch_size_per_gpu"] == 2
    assert merged["gradient_accumulation_steps"] == 3
    assert merged["zero_optimization"]["stage"] == 2
    assert merged["zero_allow_untested_optimizer"] is True
    assert merged["zero_force_ds_cpu_optimizer"] is False


def test_what_the_run_owns_is_refused_in_the_file(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"gradient_clipping": 1.0, "optimizer": {}}))
    with pytest.raises(ValueError, match="sets gradient_clipping, optimizer"):
        settings(config(deepspeed=str(file)), world_size=1)
    file.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        settings(config(deepspeed=str(file)), world_size=1)
    file.write_text(json.dumps({"fp16": {"enabled": True}}))
    with pytest.raises(ValueError, match="use bf16"):
        settings(config(deepspeed=str(file)), world_size=1)
    with pytest.raises(ValueError, match="none of zero0, zero1, zero2, zero3, zero3_offload"):
        settings(config(deepspeed="zero4"), world_size=1)


def test_the_shipped_settings_hold_nothing_else():
    assert deepspeed_configs.names() == [*STAGES, "zero3_offload"]
    for name in deepspeed_configs.names():
        content = json.loads(deepspeed_configs.path(name).read_text())
        assert set(content) == {"zero_optimization"}
