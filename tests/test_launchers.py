"""deepspeed, torchrun and accelerate each start the recipe in two processes: docs/launching.md."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from _tiny_tokenizer import options, prepare
from vqrae.training import read_metrics

pytest.importorskip("deepspeed")

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = str(ROOT / "scripts" / "train.py")
MODULE = "vqrae.scripts.train"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("launchers")
    prepare(home)
    return home


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


LAUNCHERS = {
    "deepspeed": ["--num_gpus", "2", "--master_port", "PORT", "--module", MODULE],
    "torchrun": ["--standalone", "--nproc-per-node", "2", "--", SCRIPT],
    "accelerate": [
        "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--main_process_port", "PORT", "--mixed_precision", "no", "--dynamo_backend", "no",
        "-m", MODULE,
    ],
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_are_started_and_train(launcher, home):
    if launcher == "accelerate" and not find_spec("accelerate"):
        pytest.skip("accelerate is not installed")
    words = [free_port() if word == "PORT" else word for word in LAUNCHERS[launcher]]
    program = str(Path(sys.executable).parent / launcher)
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    child = subprocess.run(
        [sys.executable, program, *words, *options(2), "--run", launcher, "--train.mfu"],
        cwd=home,
        env=env,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert child.returncode == 0, child.stderr[-4000:]
    logged = read_metrics(home / launcher)
    assert [row["step"] for row in logged] == [1, 2]
    assert all(0 < row["mfu"] <= 1.5 for row in logged)
    manifest = home / launcher / "checkpoints" / "step-00000002" / "checkpoint.json"
    assert json.loads(manifest.read_text())["world_size"] == 2
