"""A trained chain as one folder that ships: the three models, their logs and a model card."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

from vqrae.data._writing import whole_folder
from vqrae.eval import Row
from vqrae.eval.run import plain_results
from vqrae.recipes._chain import STAGES, Chain
from vqrae.training import read_metrics

logger = logging.getLogger(__name__)

_PARTS = {"unified": "unified", "tokenizer": "stage2", "vfm": "vfm"}


def pack(chain: Chain, results: dict[str, Any], out: Path, command: str) -> Path:
    """Write OUT/{unified,tokenizer,vfm}, OUT/metrics, OUT/results.json, OUT/items.jsonl and the
    card OUT/README.md.

    The folder appears whole or not at all; what stood there goes.
    """
    kept = {key: value for key, value in results.items() if key != "report"}
    with whole_folder(out) as aside:
        for part, stage in _PARTS.items():
            shutil.copytree(chain.final(stage), aside / part)
            _forget_paths(aside / part / "config.json")
        (aside / "metrics").mkdir()
        for stage, run in chain.runs.items():
            shutil.copyfile(run / "metrics.jsonl", aside / "metrics" / f"{stage}.jsonl")
        text = json.dumps(plain_results(kept), indent=1)
        (aside / "results.json").write_text(text + "\n", encoding="utf-8")
        shutil.copyfile(chain.out / "report" / "items.jsonl", aside / "items.jsonl")
        size = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
        card = _card(chain, results, command, size)
        (aside / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
    logger.info("%s: %.1f MB", out, size / 1e6)
    return out


def _forget_paths(config: Path) -> None:
    """Where parts were loaded from says something of our machine and nothing to anybody."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k != "_name_or_path"}
        return value

    known = without(json.loads(config.read_text(encoding="utf-8")))
    config.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _card(chain: Chain, results: dict[str, Any], command: str, size: int) -> str:
    environment = json.loads((chain.out / "unified" / "environment.json").read_text())
    rows = [Row(**{k: v for k, v in r.items() if k != "verdict"}) for r in results["table"]]
    lines = [
        "# vqrae nano",
        "",
        "A unified model of the scenes world: 64x64 pictures of coloured shapes. It answers "
        "questions about them, describes them, draws them from text and talks about what it drew.",
        f"VFM, tokenizer and unified model take {size / 1e6:.1f} MB. Licence: Apache-2.0.",
        "",
        "## How it was made",
        "",
        f"`{command}` makes it again: from scratch, on pictures that the package draws itself.",
        "",
        "| stage | steps | batch | seed | parameters | minutes | last loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        train = getattr(chain, stage).train
        last = read_metrics(chain.out / stage)[-1]
        millions = _parameters(chain.final(stage) / "model.safetensors") / 1e6
        cells = (
            stage,
            train.steps,
            train.batch_size,
            train.seed,
            f"{millions:.2f} M",
            f"{last['seconds'] / 60:.0f}",
            f"{last['loss']:.3f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        f"On {environment['gpu'] or str(environment['cpus']) + ' CPU cores'}, Python "
        f"{environment['python']}, torch {environment['packages']['torch']}, transformers "
        f"{environment['packages']['transformers']}. Every loss of every stage is in `metrics/`.",
        "",
        "## Numbers",
        "",
        "On the held-out split, whose every picture holds a combination that training never showed "
        "(a colour-shape pair, a relation, or two shapes together). One exception: the tokenizer "
        "sees its training pictures with their colour channels turned, and so the pixels of "
        "held-out colour-shape pairs; no caption, question or drawing of one.",
        "",
        "| | reached | beside it | note |",
        "|---|---|---|---|",
        *(f"| {r.metric} | {r.value_text} | {r.baseline_text} | {r.note} |" for r in rows),
        "",
        "`results.json` has all of them with the protocol, `items.jsonl` what they follow from. "
        "`vqrae eval` measures them again.",
        "",
    ]
    return "\n".join(lines)


def _parameters(weights: Path) -> int:
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return sum(map(math.prod, shapes))
