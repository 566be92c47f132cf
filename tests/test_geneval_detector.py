"""Mask2Former and CLIP as GenEval's detector: masks to boxes to crops to colours."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _tiny_judges import OLD_WORDS, save_clip, save_mask2former
from PIL import Image
from vqrae.eval.geneval import Rules, judge
from vqrae.eval.geneval_prompts import CLASSES, COLORS
from vqrae.eval.mask2former import (
    TEMPLATES,
    ClipColors,
    Instance,
    Mask2FormerDetector,
    cut_out,
    instances,
)


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    root = tmp_path_factory.mktemp("judges")
    names = [OLD_WORDS.get(number, name) for number, name in enumerate(CLASSES)]
    save_mask2former(root / "tiny", names, sure_of=CLASSES.index("couch"))
    texts = [t.format(color=c, name=n) for t in TEMPLATES for c in COLORS for n in CLASSES]
    save_clip(root / "clip", texts)
    return root


def test_detections_are_those_of_the_library_on_its_grid():
    from transformers import Mask2FormerImageProcessor

    torch.manual_seed(0)
    classes, masks = torch.randn(20, 81) * 3, torch.randn(20, 384, 384) + torch.randn(20, 1, 1)
    masks[3] = -1.0  # an empty mask
    out = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    [theirs] = Mask2FormerImageProcessor().post_process_instance_segmentation(
        out, threshold=0.2, target_sizes=[(384, 384)], return_binary_maps=True
    )
    labels, scores, found, boxes = instances(classes, masks, most=20)
    sure = (scores >= 0.2) & found.flatten(1).any(1)
    assert 3 < len(theirs["segments_info"]) == int(sure.sum())
    ours = sorted(
        zip(scores[sure].tolist(), labels[sure].tolist(), found[sure], strict=True),
        key=lambda one: -one[0],
    )
    wanted = sorted(
        zip(theirs["segments_info"], theirs["segmentation"], strict=True),
        key=lambda one: -one[0]["score"],
    )
    for (score, label, mask), (info, segment) in zip(ours, wanted, strict=True):
        assert label == info["label_id"] and score == pytest.approx(info["score"], abs=2e-6)
        assert torch.equal(mask, segment.bool())
    assert len(boxes) == 20


def test_one_query_may_be_of_two_classes_and_boxes_end_outside():
    classes = torch.full((2, 81), -30.0)
    classes[0, [4, 7]] = torch.tensor([3.0, 2.0])
    classes[1, 80] = 9.0  # no object
    masks = torch.full((2, 6, 8), -4.0)
    masks[0, 1:3, 2:7] = 4.0
    labels, scores, found, boxes = instances(classes, masks, most=2)
    assert labels.tolist() == [4, 7] and boxes.tolist() == [[2, 1, 7, 3]] * 2
    share, sure = torch.tensor([3.0, 2.0]).softmax(0), torch.tensor(4.0).sigmoid()
    torch.testing.assert_close(scores, share * sure, rtol=1e-4, atol=1e-4)
    assert int(found[0].sum()) == 10
    nothing = instances(classes, masks - 9, most=2)
    assert nothing[1].tolist() == [0, 0] and nothing[3].abs().sum() == 0


def disc_and_square() -> tuple[Image.Image, list[np.ndarray]]:
    """A red disc within the box of a blue square's corner, and both masks."""
    ys, xs = np.mgrid[0:60, 0:80]
    disc = (xs - 30) ** 2 + (ys - 30) ** 2 < 15**2
    square = (xs >= 50) & (xs < 70) & (ys >= 5) & (ys < 25)
    pixels = np.full((60, 80, 3), 255, np.uint8)
    pixels[square], pixels[disc] = (0, 0, 255), (255, 0, 0)
    return Image.fromarray(pixels), [disc, square]


def test_masks_to_crops_to_colours_to_a_verdict():
    image, masks = disc_and_square()
    seen: list[tuple[tuple[int, int], str]] = []

    def main_color(crop: Image.Image, name: str) -> str:
        seen.append((crop.size, name))
        assert crop.getpixel((0, 0)) in ((0x99,) * 3, (0, 0, 255))  # the corner of a disc is grey
        red, _, blue = np.asarray(crop).reshape(-1, 3).astype(float).mean(0)
        return "red" if red > blue else "blue"

    boxes = [(16.0, 16.0, 45.0, 45.0), (50.0, 5.0, 70.0, 25.0)]
    objects = [
        Instance(name, box, score, mask, image, main_color)
        for name, box, score, mask in zip(("apple", "book"), boxes, (0.8, 0.5), masks, strict=True)
    ]
    both = {
        "tag": "color_attr",
        "include": [
            {"class": "apple", "count": 1, "color": "red"},
            {"class": "book", "count": 1, "color": "blue"},
        ],
    }
    assert judge(objects, both, Rules()) == (True, "")
    assert seen == [((29, 29), "apple"), ((20, 20), "book")]  # each once, in its own box
    both["include"][0]["color"] = "blue"
    assert judge(objects, both, Rules()) == (False, "expected blue apple>=1, found 1 red")
    place = {"class": "book", "count": 1, "position": ["right of", 0]}
    right_of = {"tag": "position", "include": [{"class": "apple", "count": 1}, place]}
    assert judge(objects, right_of, Rules())[0] and len(seen) == 2
    crop = np.asarray(cut_out(image, masks[0], boxes[0]))
    assert (crop[14, 14] == (255, 0, 0)).all() and (crop[0, 0] == 0x99).all()


def test_colours_are_the_nearest_mean_of_their_sentences(judges):
    colors = ClipColors(judges / "clip")
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    model, near = colors.model, []
    pixels = colors.processor(images=crop, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        image = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output[0], dim=0)
        for color in COLORS:
            directions = []
            for template in TEMPLATES:
                line = template.format(color=color, name="tv remote")
                tokens = colors.tokenizer([line], return_tensors="pt")
                directions.append(
                    F.normalize(model.get_text_features(**tokens).pooler_output[0], dim=0)
                )
            near.append(float(image @ F.normalize(torch.stack(directions).mean(0), dim=0)))
    assert colors(crop, "tv remote") == COLORS[int(np.argmax(near))]
    assert len(set(near)) == 10


def test_the_detector_from_its_folders(judges):
    detector = Mask2FormerDetector(judges / "tiny", judges / "clip", least=0.3)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8))
    found = detector(image)
    assert found and {o.class_ for o in found} == {"couch"}
    for one in found:
        assert one.mask.shape == (50, 70) and 0.3 < one.score <= 1
        ys, xs = np.nonzero(one.mask)
        assert one.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert found[0].color in COLORS
    card = detector.card
    assert card["name"] == detector.name == "mask2former-tiny" and card["official"][:2] == "no"
    assert list(card["weights sha256"]) == ["model.safetensors"]
    assert card["colours"]["background"] == "#999"
    assert card["size"] == {"shortest_edge": 64, "longest_edge": 96}
    assert json.loads(json.dumps(card)) == card


def test_leaving_out_hopeless_queries_changes_nothing(judges, tmp_path):
    save_mask2former(tmp_path / "unsure", list(CLASSES))
    picture = Image.effect_noise((60, 40), 80).convert("RGB")

    def found(least: float) -> list[tuple]:
        detector = Mask2FormerDetector(tmp_path / "unsure", judges / "clip", least=least)
        # Some queries are surer than others.
        detector.model.class_predictor.weight.data *= 12
        return sorted((o.score, o.class_, o.box, o.mask.tobytes()) for o in detector(picture))

    everything = found(0.0)
    least = everything[-3][0] - 1e-6
    some = found(least)
    assert len(everything) > len(some) == 3 and some == everything[-3:]
    assert found(0.999) == []


def test_other_models_are_one_line(judges, tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        Mask2FormerDetector(tmp_path, judges / "clip")
    with pytest.raises(ValueError, match="holds a 'clip' model; give a mask2former folder"):
        Mask2FormerDetector(judges / "clip", judges / "clip")
    save_mask2former(tmp_path / "few", ["cat", "dog"])
    with pytest.raises(ValueError, match="has 2 classes, not COCO's 80"):
        Mask2FormerDetector(tmp_path / "few", judges / "clip")
    swapped = [CLASSES[1], CLASSES[0], *CLASSES[2:]]
    save_mask2former(tmp_path / "swapped", swapped)
    with pytest.raises(ValueError, match="class 0 of the detector .* is 'bicycle', not 'person'"):
        Mask2FormerDetector(tmp_path / "swapped", judges / "clip")
