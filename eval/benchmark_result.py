"""What every benchmark leaves behind: results.json and items.jsonl, in one form for all of them.

results.json holds `benchmark` (its name and version, as "geneval-1"), `scores`, `higher_is_better`,
and three cards: `model` (what was measured), `protocol` (what must be equal for two results to be
comparable) and `environment` (what should not matter). items.jsonl has one line for each question,
prompt or picture, from which the scores can be computed again and intervals drawn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from vqrae.data._files import write_whole
from vqrae.eval.protocol import environment_card

Item = dict[str, Any]
Aggregate = Callable[[list[Item]], dict[str, float]]

AGGREGATES = {
    "dpg": "vqrae.eval.dpg",
    "geneval": "vqrae.eval.geneval_benchmark",
    "reconstruction": "vqrae.eval.reconstruct",
    "scenes": "vqrae.eval.run",
    "vqa": "vqrae.eval.vqa_tasks",
}
"""Benchmark to the module whose `aggregate(items)` gives the scores that items decide."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """One benchmark of one model."""

    benchmark: str
    """Name, dash, version of the protocol's meaning: "geneval-1"."""
    scores: dict[str, float | None]
    """None for what was not measured."""
    higher_is_better: dict[str, bool]
    model: dict[str, Any]
    """Who was measured: name and hashes of its weights. See protocol.model_card."""
    protocol: dict[str, Any]
    """What must be equal: data hashes, split, counts, templates, seed, guidance, dtype, judge."""
    environment: dict[str, Any] = field(default_factory=environment_card)
    """Device, platform, library versions, date."""
    items: list[Item] = field(default_factory=list)
    """Each with "id", unique, and what `aggregate` reads. Items of one "unit" (default: the id) are
    drawn together when intervals are made, as many units of each "stratum" (default: the "kind", or
    one for all) as there are."""
    details: dict[str, Any] = field(default_factory=dict)
    """Anything more that results.json shall hold."""

    @property
    def name(self) -> str:
        """The benchmark without its version."""
        return self.benchmark.rpartition("-")[0]

    def aggregate(self, items: Iterable[Item]) -> dict[str, float]:
        """The scores of these items, by the benchmark's own rule."""
        rule: Aggregate = import_module(AGGREGATES[self.name]).aggregate
        return rule(list(items))

    def over(self, items: list[Item]) -> Callable[[Any], dict[str, float]]:
        """A function from places to the scores of the items there.

        A benchmark of very many items may have `prepare(items)`, which gives a faster one.
        """
        module = import_module(AGGREGATES[self.name])
        if hasattr(module, "prepare"):
            return module.prepare(items)
        return lambda places: module.aggregate([items[place] for place in places])


def write_benchmark(out: str | Path, result: BenchmarkResult) -> Path:
    """Write OUT/items.jsonl, then OUT/results.json, each whole or not at all; return its path."""
    out = Path(out)
    lines = (json.dumps(item, ensure_ascii=False, sort_keys=True) for item in result.items)
    write_whole(out / "items.jsonl", "".join(line + "\n" for line in lines))
    content = {
        "benchmark": result.benchmark,
        "scores": result.scores,
        "higher_is_better": result.higher_is_better,
        "model": result.model,
        "protocol": result.protocol,
        "environment": result.environment,
        **result.details,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return write_whole(out / "results.json", text + "\n")


def read_benchmark(path: str | Path) -> BenchmarkResult:
    """A result by its folder or its results.json.

    Raises:
        ValueError: where there is none, it is broken, or it is of an older form.
    """
    path = Path(path)
    folder = path.parent if path.suffix == ".json" else path
    file = folder / "results.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
        items = [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError as error:
        raise ValueError(
            f"'{error.filename}' is missing; give the folder that `vqrae eval` wrote"
        ) from None
    except ValueError as error:
        raise ValueError(f"results in '{folder}' are broken ({error}); measure again") from None
    known = {
        key: content.pop(key, None)
        for key in ("benchmark", "scores", "higher_is_better", "model", "protocol", "environment")
    }
    missing = [key for key, value in known.items() if value is None]
    if missing:
        raise ValueError(f"'{file}' has no {', '.join(missing)}; measure again with this version")
    name = known["benchmark"].rpartition("-")[0]
    if name not in AGGREGATES:
        raise ValueError(
            f"'{file}' is of the benchmark '{known['benchmark']}'; known are "
            f"{', '.join(AGGREGATES)}"
        )
    return BenchmarkResult(**known, items=items, details=content)


def distinct(keys: Iterable[str]) -> list[str]:
    """The keys as ids: one that comes again gets its number, "a", "a (2)"."""
    seen: dict[str, int] = {}
    found = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        found.append(key if seen[key] == 1 else f"{key} ({seen[key]})")
    return found


def flat(card: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A card's fields by dotted names: {"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in card.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found
