"""One line of `vqrae doctor`, and how a check that breaks becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What a check has found."""

    check: str
    """Of what: installation, device, compiler, deepspeed, model, disk, hub."""
    status: Status
    text: str
    mend: str = ""
    """What to do; empty where nothing is needed."""


def one_line(error: BaseException) -> str:
    """The first line of an error, with its kind unless it was written for users."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text if text and isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def guarded(check: str, steps: Callable[[], Iterator[Finding]], mend: str = "") -> list[Finding]:
    """All that `steps` finds; whatever it raises is a problem, and the last one of this check."""
    found: list[Finding] = []
    try:
        for finding in steps():
            found.append(finding)
    except Exception as error:
        found.append(Finding(check, "problem", one_line(error), mend))
    return found
