"""One place in a stream for any number of readers, from the places of another number of them.

Of R readers, number i takes the samples whose position % R == i. They do not stand at one place:
each leaves bad samples out, and a loader's workers read whole batches in turn. Together they have
read all that lies below the hindmost, and beyond it what each has read of its own samples. "taken"
holds lists of R places; the sample at position p has been read where p < places[p % R].
"""

from __future__ import annotations

Taken = list[list[int]]


def merge_positions(states: list[dict]) -> dict:
    """The state of the hindmost reader, with what the others have read beyond it in "taken".

    Args:
        states: of all readers, in the order of their numbers; each has a "position", and "taken"
            where its number of readers was not the first one.
    """
    hindmost = min(states, key=lambda state: state["position"])
    taken: Taken = [[state["position"] for state in states]]
    for state in states:
        taken += [places for places in state.get("taken", []) if places not in taken]
    return {**hindmost, "taken": still_taken(taken, hindmost["position"])}


def still_taken(taken: Taken, position: int) -> Taken:
    """The lists that say something about samples from `position` on."""
    return [places for places in taken if max(places) > position]


def is_taken(taken: Taken, position: int) -> bool:
    """Whether the sample at `position` has been read."""
    return any(position < places[position % len(places)] for places in taken)
