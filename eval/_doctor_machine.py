"""What `vqrae doctor` looks at outside the model: packages, device, compiler, disk, hub."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from vqrae.eval._finding import Finding

_EXTRAS = ("train", "data", "eval", "lora", "serve", "web")
_GB = 1e9
_LEAST_FREE, _FEW_FREE = 1.0, 10.0


def check_installation() -> Iterator[Finding]:
    """The package, and what it requires against the lower bounds; extras that are not whole."""
    check = "installation"
    try:
        required = requires("vqrae") or []
        text = f"vqrae {version('vqrae')}, Python {platform.python_version()}"
        yield Finding(check, "ok", text)
    except PackageNotFoundError:
        yield Finding(
            check, "problem", "vqrae is imported but not installed", "pip install . (or -e .)"
        )
        return
    core, extras = _requirements(required)
    wrong = [line for line in map(_unmet, core) if line]
    if wrong:
        mend = "pip install --upgrade vqrae, or make"
        yield Finding(check, "problem", f"required packages: {'; '.join(wrong)}", mend)
    else:
        yield Finding(check, "ok", f"{len(core)} required packages are new enough")
    import torchvision  # noqa: F401  a build for another torch fails here
    import transformers  # noqa: F401

    whole = []
    for name in _EXTRAS:
        wrong = [line for line in map(_unmet, extras[name]) if line]
        mend = f"pip install 'vqrae[{name}]' if you want what it is for"
        if wrong:
            yield Finding(check, "warning", f"extra [{name}]: {'; '.join(wrong)}", mend)
        elif extras[name]:
            whole.append(name)
    if whole:
        yield Finding(check, "ok", f"extras that are whole: {', '.join(whole)}")


def _requirements(lines: list[str]) -> tuple[list, dict[str, list]]:
    from packaging.requirements import Requirement

    core, extras = [], defaultdict(list)
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            core.append(requirement)
        for name in _EXTRAS:
            if marker is not None and marker.evaluate({"extra": name}):
                extras[name].append(requirement)
    return core, extras


def _unmet(requirement) -> str:
    """What is wrong with an installed package; "" for nothing."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(found, prereleases=True):
        return ""
    return f"{requirement.name} is {found}, not {requirement.specifier}"


def check_device() -> Iterator[Finding]:
    """Whether torch computes on a GPU, whether it can in bf16, and flash-attention."""
    import torch

    check = "device"
    if not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        if Path("/dev/nvidia0").exists() and not hidden:
            yield Finding(
                check,
                "problem",
                f"there is a GPU, but torch {torch.__version__} does not see it",
                "install a torch built for your driver's CUDA, see pytorch.org/get-started",
            )
        why = " (CUDA_VISIBLE_DEVICES hides the GPUs)" if hidden else ""
        threads = f"torch uses {torch.get_num_threads()} of {os.cpu_count()} cores"
        yield Finding(check, "ok", f"no GPU{why}: {threads}")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free = torch.cuda.mem_get_info(index)[0] / 2**30
        total = properties.total_memory / 2**30
        memory = f"{free:.0f} of {total:.0f} GiB free"
        yield Finding(check, "ok", f"cuda:{index} is a {properties.name}, {memory}")
    ones = torch.ones(64, 64, device="cuda")
    if float((ones @ ones)[0, 0]) != 64:
        yield Finding(check, "problem", "the GPU computes wrongly", "look at dmesg and nvidia-smi")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding(check, "ok", "bf16 is there")
    else:
        yield Finding(check, "warning", "the GPU has no bf16", "train with --train.precision fp32")
    yield _flash(torch.cuda.get_device_capability()[0])


def _flash(major: int) -> Finding:
    if find_spec("flash_attn") is None:
        text = "flash-attn is not installed; torch's own attention is used"
        mend = "pip install 'vqrae[flash]' for long sequences" if major >= 8 else ""
        return Finding("device", "ok", text, mend)
    import flash_attn

    return Finding("device", "ok", f"flash-attn {flash_attn.__version__}")


def check_compiler() -> Iterator[Finding]:
    """A C++ compiler that works, Python's headers, ninja; nvcc where there is a GPU."""
    import torch
    from vqrae.generation._kernels import compiler_commands

    check = "compiler"
    mend = "install g++ (Debian: apt install build-essential); torch.compile and DeepSpeed's own "
    mend += "operations need it, and drawing with large models on a CPU is faster with it"
    commands = compiler_commands()
    found = [[path, *options] for name, *options in commands if (path := shutil.which(name))]
    if not found:
        names = ", ".join(map(" ".join, commands))
        yield Finding(check, "warning", f"no C++ compiler ({names})", mend)
    else:
        compiler = " ".join(found[0])
        done = subprocess.run(
            [*found[0], "-x", "c++", "-fsyntax-only", "-"],
            input="#include <vector>\nint main() { return 0; }\n",
            capture_output=True,
            text=True,
            timeout=30,
        )
        if done.returncode:
            reason = (done.stderr.splitlines() or ["no reason given"])[0]
            yield Finding(check, "warning", f"{compiler} does not compile: {reason}", mend)
        else:
            yield Finding(check, "ok", f"{compiler} compiles")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        yield Finding(
            check, "warning", "Python's headers are missing", "apt install python3-dev, or the like"
        )
    if find_spec("deepspeed") is None:
        return
    if find_spec("ninja") is None and shutil.which("ninja") is None:
        text = "ninja is missing: DeepSpeed cannot build its operations"
        yield Finding(check, "warning", text, "pip install ninja")
    if torch.cuda.is_available():
        home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
        if shutil.which("nvcc") is None and not (Path(home) / "bin" / "nvcc").is_file():
            text = "nvcc is missing: DeepSpeed cannot build operations for the GPU"
            mend = f"install the CUDA toolkit of torch's version {torch.version.cuda}, or do "
            yield Finding(check, "warning", text, mend + "without offload and fused optimizers")


def check_disk(run: Path, weights: int | None) -> Iterator[Finding]:
    """Whether runs can be written and what fits. weights: bytes of the model's, if known."""
    check = "disk"
    if run.exists() and not run.is_dir():
        yield Finding(check, "problem", f"'{run}' is a file", "choose another --run")
        return
    there = next(p for p in (run.absolute(), *run.absolute().parents) if p.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        text = f"'{there}' cannot be written: {error.strerror or error}"
        yield Finding(check, "problem", text, "choose another --run, or mend its permissions")
        return
    free = shutil.disk_usage(there).free / _GB
    text = f"'{run}' can be written, {free:.1f} GB are free"
    mend = "make room, or choose another --run"
    if free < _LEAST_FREE:
        yield Finding(check, "problem", text, mend)
    elif free < _FEW_FREE:
        yield Finding(check, "warning", text, mend)
    else:
        yield Finding(check, "ok", text)
    if weights:
        # fp32 weights and AdamW's two moments; two checkpoints stay and one is being written
        needed = 3 * 3 * weights / _GB
        text = f"training a model of this size keeps up to {needed:.1f} GB of checkpoints"
        short = needed > free
        yield Finding(check, "warning" if short else "ok", text, mend if short else "")
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < _LEAST_FREE * _GB:
        size = shutil.disk_usage(shared).total / 1e6
        text = f"/dev/shm has {size:.0f} MB: loaders with workers may die with a bus error"
        yield Finding(check, "warning", text, "docker run --shm-size 8g, or --train.num-workers 0")


def check_hub() -> Iterator[Finding]:
    """Whether names of the hub are downloaded or only looked up, and where."""
    from huggingface_hub import constants

    check = "hub"
    cache = Path(constants.HF_HUB_CACHE)
    kinds = ("models", "datasets")
    counts = {kind: len(list(cache.glob(f"{kind}--*"))) for kind in kinds}
    held = f"'{cache}' holds {counts['models']} models and {counts['datasets']} data sets"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        text = f"offline, as HF_HUB_OFFLINE says (unset, vqrae's commands set it to 1): {held}"
        yield Finding(check, "ok", text)
        return
    yield Finding(check, "ok", f"online: {held}")
    there = next(p for p in (cache, *cache.parents) if p.is_dir())
    if not os.access(there, os.W_OK):
        text = f"'{there}' cannot be written, so nothing can be downloaded"
        yield Finding(check, "warning", text, "set HF_HOME to a folder of yours")
