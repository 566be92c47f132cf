"""Two results of one benchmark, or a refusal that says why they cannot be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vqrae.eval.benchmark_result import BenchmarkResult, flat, read_benchmark
from vqrae.eval.intervals import LEVEL, RESAMPLES, Interval, bootstrap

_WHEN = "finished"
_ABSENT = "nothing"


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One score of both."""

    score: str
    a: float | None
    b: float | None
    higher_is_better: bool | None
    interval: Interval | None
    """Of b - a; None for a score that items do not decide."""

    @property
    def difference(self) -> float | None:
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def excludes_zero(self) -> bool | None:
        return None if self.interval is None else not self.interval[0] <= 0 <= self.interval[1]

    @property
    def verdict(self) -> str:
        """ "A better", "B better", "unclear", "the same"; "" where there is no interval."""
        if self.interval is None:
            return ""
        if self.interval == (0, 0):
            return "the same"
        if not self.excludes_zero:
            return "unclear"
        if self.higher_is_better is None:
            return "they differ"
        return "B better" if (self.interval[0] > 0) == self.higher_is_better else "A better"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found."""

    benchmark: str
    models: tuple[str, str]
    rows: list[ScoreRow]
    allowed: dict[str, tuple[Any, Any]]
    """Fields of the protocol that differ and were allowed to, with both values."""
    environment: dict[str, tuple[Any, Any]]
    """Likewise of the environment; they should change nothing."""
    units: int
    level: float
    resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [
            asdict(row)
            | {
                "difference": row.difference,
                "excludes_zero": row.excludes_zero,
                "verdict": row.verdict,
            }
            for row in self.rows
        ]
        return asdict(self) | {"rows": rows}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields of two cards, by dotted names, that are not equal; both values."""
    left, right = flat(a), flat(b)
    return {
        name: (left.get(name, _ABSENT), right.get(name, _ABSENT))
        for name in [*left, *(name for name in right if name not in left)]
        if left.get(name, _ABSENT) != right.get(name, _ABSENT)
    }


def compare(
    a: str | Path | BenchmarkResult,
    b: str | Path | BenchmarkResult,
    *,
    allow: Sequence[str] = (),
    level: float = LEVEL,
    count: int = RESAMPLES,
    seed: int = 0,
    sides: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """Scores of both, and of b - a an interval by a bootstrap in which both have the same units.

    Args:
        a, b: results, or folders that `vqrae eval` wrote.
        allow: fields of the protocol that may differ, "sampling.guidance_scale", or all of a group,
            "sampling".
        level: of the intervals. count: resamples. sides: what errors call a and b.

    Raises:
        ValueError: of one line, if benchmark, protocol or items differ, or one of them is broken.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not be {level}")
    if count < 1:
        raise ValueError(f"resamples must be at least 1, not {count}")
    names = [
        side if isinstance(result, BenchmarkResult) else str(result)
        for side, result in zip(sides, (a, b), strict=True)
    ]
    a, b = (r if isinstance(r, BenchmarkResult) else read_benchmark(r) for r in (a, b))
    if a.benchmark != b.benchmark:
        raise ValueError(
            f"'{names[0]}' is of {a.benchmark}, '{names[1]}' of {b.benchmark}; compare results of "
            "one benchmark in one version"
        )
    allowed = _check_protocols(a, b, allow, sides)
    first, second = sorted(a.items, key=_id), sorted(b.items, key=_id)
    _check_items(names, sides, first, second)
    for name, result in zip(names, (a, b), strict=True):
        check_scores(result, name)

    score_a, score_b = a.over(first), b.over(second)

    def difference(places: np.ndarray) -> dict[str, float]:
        left, right = score_a(places), score_b(places)
        return {name: right[name] - left[name] for name in left if name in right}

    # The same answer to whoever asks in the other order: units are A's, which are B's.
    found = bootstrap(first, difference, count=count, level=level, seed=seed) if first else {}
    rows = [
        ScoreRow(
            score=name,
            a=a.scores.get(name),
            b=b.scores.get(name),
            higher_is_better=a.higher_is_better.get(name),
            interval=found.get(name),
        )
        for name in [*a.scores, *(name for name in b.scores if name not in a.scores)]
    ]
    return Comparison(
        benchmark=a.benchmark,
        models=(str(a.model.get("name", "")), str(b.model.get("name", ""))),
        rows=rows,
        allowed=allowed,
        environment={
            name: values
            for name, values in differences(a.environment, b.environment).items()
            if name != _WHEN
        },
        units=len({item.get("unit", item["id"]) for item in first}),
        level=level,
        resamples=count,
        seed=seed,
    )


def number(value: float | None, sign: str = "") -> str:
    """Four digits or so, as tables have them."""
    if value is None:
        return "–"
    size = abs(value)
    return f"{value:{sign}.{3 if size < 10 else 2 if size < 100 else 1}f}"


def _id(item: Mapping[str, Any]) -> str:
    return str(item["id"])


def _covers(field: str) -> Callable[[str], bool]:
    return lambda name: name == field or name.startswith(f"{field}.")


def _check_protocols(
    a: BenchmarkResult, b: BenchmarkResult, allow: Sequence[str], sides: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
    known = {**flat(a.protocol), **flat(b.protocol)}
    for field in allow:
        if not any(map(_covers(field), known)):
            raise ValueError(
                f"the protocol has no field {field!r} to allow; it has {', '.join(known)}"
            )
    differing = differences(a.protocol, b.protocol)
    allowed = {
        name: values
        for name, values in differing.items()
        if any(_covers(field)(name) for field in allow)
    }
    refused = [name for name in differing if name not in allowed]
    if refused:
        listed = "; ".join(
            f"{name} is "
            + ", ".join(
                f"{_short(value)} in {side}"
                for value, side in zip(differing[name], sides, strict=True)
            )
            for name in refused
        )
        raise ValueError(
            f"the protocols differ: {listed}. Measure one of them again, or say --allow "
            f"{' '.join(refused)} if that is what you compare"
        )
    return allowed


def _short(value: Any, limit: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _check_items(
    names: Sequence[str], sides: Sequence[str], a: Sequence[Mapping], b: Sequence[Mapping]
) -> None:
    ids = [list(map(_id, items)) for items in (a, b)]
    for name, found in zip(names, ids, strict=True):
        if len(set(found)) < len(found):
            raise ValueError(f"items of '{name}' have one id twice; measure again")
    if ids[0] == ids[1]:
        units = [[item.get("unit", item["id"]) for item in items] for items in (a, b)]
        if units[0] != units[1]:
            raise ValueError(
                f"items of {sides[0]} belong to other units than those of {sides[1]}; measure again"
            )
        return
    only = [sorted(set(ids[i]) - set(ids[1 - i])) for i in (0, 1)]
    parts = [
        f"{len(some)} only in {side} ('{some[0]}' first)"
        for some, side in zip(only, sides, strict=True)
        if some
    ]
    raise ValueError(
        f"the items differ: {' and '.join(parts)}; a comparison needs the same in both"
    )


def check_scores(result: BenchmarkResult, name: object) -> None:
    """Raise ValueError where results.json and items.jsonl are not of one measurement."""
    if not result.items:
        return
    for score, value in result.aggregate(result.items).items():
        written = result.scores.get(score)
        if written is None or not np.isclose(written, value, rtol=1e-6, atol=1e-9, equal_nan=True):
            raise ValueError(
                f"'{name}' has {score} {written}, but its items give {value}: results.json and "
                "items.jsonl are of two measurements; measure again"
            )
