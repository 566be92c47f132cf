"""Pictures moved and mirrored."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image
from vqrae.data import Augment

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)


def many(augment, n=300):
    rng = random.Random(0)
    return [np.asarray(augment(Image.fromarray(PIXELS), rng)) for _ in range(n)]


def test_flips_give_all_four_pictures():
    wanted = [PIXELS, PIXELS[:, ::-1], PIXELS[::-1], PIXELS[::-1, ::-1]]
    found = many(Augment(mirror=True, flip=True))
    shares = [np.mean([np.array_equal(got, one) for got in found]) for one in wanted]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0.15


def test_crops_are_squares_from_everywhere():
    whole = {got.tobytes() for got in many(Augment(crop=1))}
    assert whole == {PIXELS[:, left : left + 6].tobytes() for left in range(5)}
    small = {got.tobytes() for got in many(Augment(crop=0.5), 2000)}
    assert small == {
        PIXELS[top : top + side, left : left + side].tobytes()
        for side in range(3, 7)
        for top in range(7 - side)
        for left in range(11 - side)
    }


def test_shifts_repeat_the_edge():
    """A quarter of 10 and of 6 pixels, rounded."""
    rows, columns = np.arange(6), np.arange(10)
    wanted = {
        PIXELS[(rows - dy).clip(0, 5)][:, (columns - dx).clip(0, 9)].tobytes()
        for dy in range(-2, 3)
        for dx in range(-2, 3)
    }
    assert {got.tobytes() for got in many(Augment(shift=0.25))} == wanted


def test_nothing_by_default_and_bad_shares():
    assert not Augment().changes
    assert np.array_equal(many(Augment(), 1)[0], PIXELS)
    with pytest.raises(ValueError, match=r"crop .* not 0"):
        Augment(crop=0)
    with pytest.raises(ValueError, match=r"shift .* not 1\.5"):
        Augment(shift=1.5)
