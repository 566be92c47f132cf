"""The detector against scenes whose truth is known."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from vqrae.data.scene_prompts import geneval_prompts, more_prompts, scene_for_prompt
from vqrae.data.scenes import COLORS, SHAPES, Background, Scene, SceneObject, render, sample_scene
from vqrae.eval.geneval import score
from vqrae.eval.scenes_detector import detect


def is_right(scene: Scene, found: list) -> bool:
    """Class, colour, size and box (within 1.5 px) of every object, and nothing more."""
    rest = list(found)
    for o in scene.objects:
        hit = next(
            (
                d
                for d in rest
                if (d.class_, d.color, d.size) == (o.shape, o.color, o.size)
                and max(abs(p - q) for p, q in zip(d.box, o.box, strict=True)) <= 1.5
            ),
            None,
        )
        if hit is None:
            return False
        rest.remove(hit)
    return not rest


def generated_like(image: np.ndarray, rng: np.random.Generator, blur: float, noise: float):
    soft = ndimage.gaussian_filter(image.astype(float), (blur, blur, 0))
    return np.clip(soft + rng.normal(0, 255 * noise, soft.shape) + 0.5, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def truth() -> list[tuple[Scene, np.ndarray]]:
    rng = np.random.default_rng(0)
    drawn = []
    for index in range(1000):
        split = "test" if index % 2 else "train"
        scene = sample_scene(rng, split=split, jitter=0.0 if index % 4 < 2 else 2.0)
        drawn.append((scene, render(scene)))
    return drawn


def test_1000_true_scenes(truth):
    start = time.perf_counter()
    right = sum(is_right(scene, detect(image)) for scene, image in truth)
    seconds = time.perf_counter() - start
    assert right >= 990
    assert seconds < 30  # about 1.5 s on a quiet core


@pytest.mark.parametrize(("blur", "noise"), [(0.7, 0.03), (1.2, 0.02), (0.0, 0.05)])
def test_mild_blur_and_noise(truth, blur, noise):
    rng = np.random.default_rng(1)
    some = truth[:300]
    right = sum(is_right(s, detect(generated_like(i, rng, blur, noise))) for s, i in some)
    assert right >= 0.98 * len(some)


def test_recoloured_missing_and_extra_objects(truth):
    rng = np.random.default_rng(2)
    for scene, _ in truth[:200]:
        objects = scene.objects
        first = objects[0]
        other = next(c for c in COLORS if c != first.color)
        recoloured = (replace(first, color=other), *objects[1:])
        reshaped = (replace(first, shape=SHAPES[SHAPES.index(first.shape) - 1]), *objects[1:])
        taken = {(o.row, o.col) for o in objects}
        row, col = next((r, c) for r in range(4) for c in range(4) if (r, c) not in taken)
        shape = SHAPES[int(rng.integers(8))]
        extra = (*objects, SceneObject(shape, other, "small", row, col))
        for changed in (recoloured, reshaped, objects[1:], extra):
            found = detect(render(Scene(changed, scene.background)))
            assert is_right(Scene(changed, scene.background), found)
            assert not is_right(scene, found)


def test_every_shape_colour_size_and_tone():
    for shape in SHAPES:
        for color in COLORS:
            for size in ("small", "large"):
                for tone in ("dark", "grey", "light"):
                    o = SceneObject(shape, color, size, 1, 2)
                    scene = Scene((o,), Background("checker", tone))
                    assert is_right(scene, detect(render(scene)))


def test_touching_objects():
    cells = [(r, c) for r in range(4) for c in range(4)][1:]
    for shape in SHAPES:
        objects = tuple(SceneObject(shape, "red", "large", r, c) for r, c in cells)
        scene = Scene(objects, Background("plain", "grey"))
        assert is_right(scene, detect(render(scene)))


def test_specks_and_empty_pictures_are_no_objects():
    image = render(Scene((), Background("dots", "light"))).copy()
    assert detect(image) == []
    image[5:8, 5:9] = COLORS["red"]
    image[40, 3:30] = COLORS["blue"]
    assert detect(image) == []
    assert detect(np.full((64, 64, 3), COLORS["red"], dtype=np.uint8)) == []
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert len(detect(noise)) <= 4


def test_pil_and_arrays_agree_and_bad_input_is_named(truth):
    _, image = truth[0]
    assert detect(Image.fromarray(image)) == detect(image)
    assert [d.score for d in detect(image)] == sorted(
        (d.score for d in detect(image)), reverse=True
    )
    with pytest.raises(ValueError, match="resize the picture first"):
        detect(np.zeros((32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "prompts",
    [geneval_prompts(0, 16, "train"), geneval_prompts(0, 16, "test"), more_prompts(0, 16)],
    ids=["train", "test", "more"],
)
def test_true_pictures_fulfil_their_prompts(prompts):
    rng = np.random.default_rng(3)
    for meta in prompts:
        correct, reason = score(detect(render(scene_for_prompt(meta, rng))), meta)
        assert correct, (meta["prompt"], reason)
