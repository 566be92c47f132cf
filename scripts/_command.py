"""What all commands share: quiet libraries, a log on stderr, errors of one line."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys


def quiet_environment() -> None:
    """Before torch and transformers are imported: no hub, no banners, no fork warnings."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if _has_gpu() else "cpu")


def _has_gpu() -> bool:
    """Without importing torch, which costs seconds: is a driver there at all?"""
    return os.path.exists("/dev/nvidia0") or os.path.exists("/dev/dxg")


def without_local_rank(argv: list[str]) -> list[str]:
    """The arguments less --local_rank=N, which DeepSpeed's launcher adds to them.

    It sets the environment's LOCAL_RANK, too, and that is what training reads.
    """
    return [word for word in argv if not re.fullmatch(r"--local[_-]rank=\d+", word)]


def run_command(module: str, argv: list[str], prog: str) -> int:
    """Import `vqrae.scripts.<module>` and call its main(argv, prog); it may return a status.

    What a user can cause ends as one line on stderr; only our own mistakes give a traceback.
    """
    quiet_environment()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "DeepSpeed", "matplotlib", "PIL", "torch", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return importlib.import_module(f"vqrae.scripts.{module}").main(argv, prog) or 0
    except ValueError as error:
        return _fail(prog, error, 2)
    except OSError as error:
        return _fail(prog, f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1)
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 130
    except RuntimeError as error:
        if type(error).__name__ != "TrainingStopped":
            raise
        return _fail(prog, error, 1)


def _fail(prog: str, error: object, status: int) -> int:
    lines = str(error).splitlines() or [type(error).__name__]
    sys.stderr.write(f"{prog}: {' '.join(line.strip() for line in lines)}\n")
    return status
