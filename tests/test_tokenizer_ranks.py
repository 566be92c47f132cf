"""Two ranks train the tokenizer as one does on the same global batch: losses, critic, usage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from _tiny_tokenizer import options, prepare
from vqrae.training import read_metrics

pytest.importorskip("deepspeed")

STEPS = 4
# Augmentation goes by the pictures that share a batch, so it would differ.
RECIPE = [
    *options(STEPS), "--loss.adversarial-start", "1", "--loss.critic-width", "4",
    "--loss.lecam-weight", "0.1", "--loss.augment.no-mirror", "--loss.augment.crop", "None",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("ranks")
    prepare(home)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    commands = {
        "one": [sys.executable, "-m", "vqrae.scripts.train", *RECIPE, "--train.engine", "torch",
                "--train.deepspeed", "None"],
        "two": [*ranks, "-m", "--", "vqrae.scripts.train", *RECIPE],
    }  # fmt: skip
    children = [
        subprocess.Popen(
            [*command, "--run", name], cwd=home, env=env, stderr=subprocess.PIPE, text=True
        )
        for name, command in commands.items()
    ]
    for child in children:
        _, stderr = child.communicate(timeout=300)
        assert child.returncode == 0, stderr[-4000:]
    return home


def test_two_ranks_have_the_losses_of_one(runs):
    one, two = (read_metrics(runs / name) for name in ("one", "two"))
    assert [row["step"] for row in two] == [row["step"] for row in one] == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        compared = {key for key in a if key not in ("step", "seconds") and "per_s" not in key}
        for key in compared:
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6), (a["step"], key)
        assert compared >= {"loss", "pixel", "distillation", "usage", "perplexity", "grad_norm"}
    assert compared >= {"adversarial", "loss_critic", "critic_real", "critic_fake", "lecam"}
