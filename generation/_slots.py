"""Rows of the cache: the first ones run, the others keep what was read, for a prompt that goes on.

A conversation asks with all that was said before; where that is still in a row, only what is new
is read. Shapes: R rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from itertools import takewhile

import torch
from torch import Tensor
from vqrae.generation._ragged import RaggedCache


class Slots:
    """What each row of a cache holds.

    Rows are told apart by keys, one for each token: two tokens with equal keys after equal
    beginnings are the same to the model.
    """

    def __init__(self, cache: RaggedCache, device: torch.device):
        self.cache = cache
        self.lengths = torch.zeros(cache.rows, dtype=torch.long, device=device)
        self.keys: list[list[Hashable]] = [[] for _ in range(cache.rows)]
        self._used = [0] * cache.rows
        self._clock = 0

    def take(self, place: int, keys: Sequence[Hashable]) -> int:
        """Make row `place`, the first that does not run, begin as `keys` do.

        Returns how many of them it holds already: all but the last at most, for whose sake the
        model is asked.
        """
        kept = range(place, self.cache.rows)
        held = {row: _common(self.keys[row], keys[:-1]) for row in kept}
        best = max(kept, key=lambda row: held[row])
        # A beginning that all prompts share is no reason to cut down another conversation.
        if 2 * held[best] < len(self.keys[best]) or not held[best]:
            best = min(kept, key=lambda row: (bool(self.keys[row]), self._used[row]))
            held[best] = 0
        self.swap(best, place)
        self.cut(place, held[best])
        return held[best]

    def cut(self, place: int, length: int) -> None:
        """Let row `place` keep its first `length` tokens only."""
        del self.keys[place][length:]
        self.lengths[place] = length

    def grew(self, place: int, keys: Sequence[Hashable]) -> None:
        """Row `place` has read these, too."""
        self.keys[place] += keys
        self.lengths[place] += len(keys)
        self._clock += 1
        self._used[place] = self._clock

    def swap(self, a: int, b: int) -> None:
        """Exchange what two rows hold."""
        if a == b:
            return
        self.cache.swap(a, b, max(len(self.keys[a]), len(self.keys[b])))
        self.lengths[[a, b]] = self.lengths[[b, a]]
        for of_rows in (self.keys, self._used):
            of_rows[a], of_rows[b] = of_rows[b], of_rows[a]


def token_keys(ids: Sequence[int], pad: int, features: Tensor | None) -> list[Hashable]:
    """A key for each token: a picture's are its features, not the pads that hold their places."""
    if features is None:
        return list(ids)
    places = features.shape[1]
    hashes = [
        hashlib.blake2b(picture.cpu().float().numpy().tobytes(), digest_size=16).digest()
        for picture in features
    ]
    keys, seen = [], 0
    for token in ids:
        if token == pad:
            keys.append((hashes[seen // places], seen % places))
            seen += 1
        else:
            keys.append(token)
    return keys


def _common(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
