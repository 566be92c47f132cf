"""GenEval's scoring of detected objects (Ghosh et al., 2023, arXiv:2310.11513), as pure functions.

The rules are those of the official evaluation: a prompt's `include` clauses must all hold and none
of its `exclude` clauses may. A clause looks at the `count` most confident objects of its class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# Share of the two boxes' summed sizes that an offset must exceed before it counts.
POSITION_MARGIN = 0.1


class ScoredObject(Protocol):
    """What a detector gives: a class, a colour, a box (x0, y0, x1, y1) and a confidence.

    The colour is read only where a prompt names one, so it may be found when it is asked for.
    """

    class_: str
    color: str
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class Rules:
    """Which detections count, before a prompt is asked about them.

    The official maximal overlap is 1.0, which drops nothing, so there is no such rule here.
    """

    threshold: float = 0.3
    """A detection counts above this confidence."""
    counting_threshold: float = 0.9
    """The same for prompts of the category "counting"."""
    max_objects: int | None = 16
    """So many of each class at most, the most confident ones; None: all."""


# A detector that decides by itself what is an object.
ALL = Rules(threshold=0.0, counting_threshold=0.0, max_objects=None)


def kept(objects: Iterable[ScoredObject], tag: str, rules: Rules) -> list[ScoredObject]:
    """The detections that count for a prompt of this category, the most confident first."""
    least = rules.counting_threshold if tag == "counting" else rules.threshold
    taken: Counter[str] = Counter()
    found = []
    for one in sorted(objects, key=lambda o: -o.score):
        if one.score > least and (
            rules.max_objects is None or taken[one.class_] < rules.max_objects
        ):
            taken[one.class_] += 1
            found.append(one)
    return found


def judge(objects: Iterable[ScoredObject], metadata: dict, rules: Rules = ALL) -> tuple[bool, str]:
    """Whether a picture fulfils a prompt, from all its detections, and else why not."""
    return score(kept(objects, metadata["tag"], rules), metadata)


def relative_position(
    box_a: Sequence[float], box_b: Sequence[float], margin: float = POSITION_MARGIN
) -> set[str]:
    """Where a is, seen from b: a subset of "left of", "right of", "above", "below".

    The offset of the centres, shortened in x and in y by `margin` times the sum of both boxes'
    widths and heights, must be over half of the full distance along an axis; so up to two
    directions hold, one of each axis.
    """
    a, b = (
        np.asarray(box_a, dtype=float).reshape(2, 2),
        np.asarray(box_b, dtype=float).reshape(2, 2),
    )
    offset = a.mean(axis=0) - b.mean(axis=0)
    sizes = abs(a[1] - a[0]) + abs(b[1] - b[0])
    beyond = np.maximum(abs(offset) - margin * sizes, 0) * np.sign(offset)
    if (abs(beyond) < 1e-3).all():
        return set()
    dx, dy = beyond / np.linalg.norm(offset)
    directions = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, share in directions.items() if share > 0.5}


def score(objects: Iterable[ScoredObject], metadata: dict) -> tuple[bool, str]:
    """Whether a picture with these objects fulfils a prompt, and else why not.

    Args:
        objects: all detections, of any order.
        metadata: {"include": [{"class", "count", "color"?, "position"?: [relation, index of an
            earlier clause]}], "exclude"?: [{"class", "count"}]}.

    Returns:
        (correct, reason): the reason is "" where it is correct.
    """
    by_class: dict[str, list[ScoredObject]] = {}
    for found in sorted(objects, key=lambda o: -o.score):
        by_class.setdefault(found.class_, []).append(found)

    reasons: list[str] = []
    groups: list[list[ScoredObject] | None] = []
    for clause in metadata.get("include", []):
        group = by_class.get(clause["class"], [])[: clause["count"]]
        reason = _check(clause, group, groups)
        groups.append(None if reason else group)
        reasons += [reason] if reason else []
    for clause in metadata.get("exclude", []):
        number = len(by_class.get(clause["class"], []))
        if number >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {number}")
    return not reasons, "; ".join(reasons)


def _check(clause: dict, group: list[ScoredObject], groups: list[list[ScoredObject] | None]) -> str:
    """Why a group of objects fails its clause; "" where it does not."""
    name, count = clause["class"], clause["count"]
    if len(group) < count:
        return f"expected {name}>={count}, found {len(group)}"
    if "color" in clause:
        colors = Counter(o.color for o in group)
        if colors[clause["color"]] < count:
            found = ", ".join(f"{number} {color}" for color, number in sorted(colors.items()))
            return f"expected {clause['color']} {name}>={count}, found {found}"
    if "position" in clause:
        relation, index = clause["position"]
        targets = groups[index]
        if targets is None:
            return f"no target for {name} to be {relation}"
        for mover in group:
            for target in targets:
                true = relative_position(mover.box, target.box)
                if relation not in true:
                    found = " and ".join(sorted(true)) or "none of the four"
                    return f"expected {name} {relation} target, found {found}"
    return ""
