"""How far a score could have come out otherwise: percentile bootstrap over a benchmark's units.

Efron (1979). A unit is what was drawn from the world at once (a picture with all its questions, a
prompt with all its drawings). Within a stratum, such as a category whose number of prompts was
fixed beforehand, as many units are drawn as there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from zlib import crc32

import numpy as np
from vqrae.eval.benchmark_result import Item

LEVEL = 0.95
RESAMPLES = 1000

Interval = tuple[float, float]
Scores = dict[str, float]
Statistic = Callable[[np.ndarray], Scores]


def units_of(items: Sequence[Item]) -> dict[tuple[str, str], list[int]]:
    """(stratum, unit) to the places of its items, in an order that is not that of the items."""
    units: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        stratum = item.get("stratum", item.get("kind", ""))
        units[str(stratum), str(item.get("unit", item["id"]))].append(place)
    return {name: units[name] for name in sorted(units)}


def resamples(
    units: dict[tuple[str, str], list[int]], *, count: int = RESAMPLES, seed: int = 0
) -> Iterator[np.ndarray]:
    """Places of the items of so many resamples, the units of each stratum drawn with return."""
    strata: dict[str, list[np.ndarray]] = defaultdict(list)
    for (stratum, _), places in units.items():
        strata[stratum].append(np.array(places))
    # Each stratum has its own chance, so that no interval depends on what else was measured.
    chances = {name: np.random.default_rng([seed, crc32(name.encode())]) for name in strata}
    single = {name: all(len(m) == 1 for m in members) for name, members in strata.items()}
    flat = {name: np.concatenate(members) for name, members in strata.items()}
    for _ in range(count):
        drawn = []
        for name, members in strata.items():
            chosen = chances[name].integers(len(members), size=len(members))
            if single[name]:
                drawn.append(flat[name][chosen])
            else:
                drawn.extend(members[index] for index in chosen)
        yield np.concatenate(drawn)


def bootstrap(
    items: Sequence[Item],
    statistic: Statistic,
    *,
    count: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Interval]:
    """Score to its interval. `statistic` gives the scores of the items at some places.

    A score that a resample does not have (none of its items was drawn) is left out of that one.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for places in resamples(units_of(items), count=count, seed=seed):
        for name, value in statistic(places).items():
            found[name].append(value)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {
        name: (float(low), float(high))
        for name, values in found.items()
        for low, high in [np.quantile(values, tails)]
    }
