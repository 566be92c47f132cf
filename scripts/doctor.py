"""`vqrae doctor`: does everything needed work here? Exit status 1 where something does not."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

import tyro
from vqrae.scripts._model import model_folder


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Look at the installation, the device, a model, DeepSpeed's settings and the disk."""

    model: str | None = None
    """Folder of a unified model or a tokenizer; by default $VQRAE_MODEL or the one that ships."""
    run: str = "runs"
    """Where runs are to be written."""
    deepspeed: str | None = None
    """A DeepSpeed JSON of your own to check besides those that ship."""
    json: bool = False
    """Write the findings as JSON."""


def main(argv: list[str], prog: str = "vqrae doctor") -> int:
    config = tyro.cli(Doctor, args=argv, prog=prog)
    from vqrae.eval.doctor import examine, has_problem

    found = examine(model_folder(config.model), run=config.run, deepspeed=config.deepspeed)
    if config.json:
        text = json.dumps([asdict(finding) for finding in found], indent=1, ensure_ascii=False)
        sys.stdout.write(text + "\n")
        return int(has_problem(found))
    check = ""
    for finding in found:
        if finding.check != check:
            check = finding.check
            sys.stdout.write(f"{check}\n")
        sys.stdout.write(f"  {finding.status:<8} {finding.text}\n")
        if finding.mend:
            sys.stdout.write(f"  {'':<8} -> {finding.mend}\n")
    counts = {kind: sum(f.status == kind for f in found) for kind in ("problem", "warning")}
    listed = ", ".join(f"{n} {kind}{'' if n == 1 else 's'}" for kind, n in counts.items())
    sys.stdout.write(f"{listed}\n")
    return int(has_problem(found))
