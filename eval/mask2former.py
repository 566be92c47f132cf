"""GenEval's detector and colour reader from transformers: Mask2Former over COCO, and CLIP.

The official evaluation runs mmdet's Mask2Former (Swin-S) and open_clip's ViT-L/14 of OpenAI. The
same steps here: which detections there are and how sure, boxes of masks, the crop on grey, the
sentences of the colours. Legend: Q queries, C classes, H W pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from vqrae.eval.geneval import Rules
from vqrae.eval.geneval_prompts import CLASSES, COLORS
from vqrae.eval.protocol import model_dtype, weight_hashes

if TYPE_CHECKING:
    from transformers import CLIPModel

    NameColor = Callable[[Image.Image, str], str]

BACKGROUND = "#999"
"""What stands in a crop where the object's mask is not."""
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}",
             "a photo of a {color} object")  # fmt: skip
_MAX_PER_IMAGE = 100

# COCO's own words and those of older lists, where GenEval has others.
_ALIASES = {
    "motorcycle": ("motorbike",),
    "airplane": ("aeroplane",),
    "couch": ("sofa",),
    "tv": ("tvmonitor",),
    "computer mouse": ("mouse",),
    "tv remote": ("remote",),
    "computer keyboard": ("keyboard",),
    "hair drier": ("hairdryer",),
    "donut": ("doughnut",),
}


@dataclass(eq=False)
class Instance:
    """One detection; its colour is read when it is asked for."""

    class_: str
    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray = field(repr=False)
    """(H, W) bool."""
    image: Image.Image = field(repr=False)
    name_color: NameColor = field(repr=False)

    @cached_property
    def color(self) -> str:
        return self.name_color(cut_out(self.image, self.mask, self.box), self.class_)


def cut_out(
    image: Image.Image, mask: np.ndarray, box: Sequence[float], background: str = BACKGROUND
) -> Image.Image:
    """The box of a picture, with only the object in it."""
    image = image.convert("RGB")
    blank = Image.new("RGB", image.size, color=background)
    return Image.composite(image, blank, Image.fromarray(mask)).crop(tuple(box))


def instances(
    class_logits: Tensor, mask_logits: Tensor, *, most: int = _MAX_PER_IMAGE
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The detections of one picture, the most confident classes of all queries.

    A query may give several, of different classes. The confidence is that of the class times the
    mean probability inside the mask, and no mask hides another, as in the official detector;
    transformers' own post-processing does the same, but on a grid of 384 by 384.

    Args:
        class_logits: (Q, C + 1), the last one for no object.
        mask_logits: (Q, H, W).
        most: detections at most.

    Returns:
        labels (D,), scores (D,), masks (D, H, W) bool and boxes (D, 4): x0, y0, x1, y1 in pixels,
        the last two just outside; zeros where a mask is empty.
    """
    shares = class_logits.float().softmax(-1)[:, :-1]
    found, where = shares.flatten().topk(min(most, shares.numel()))
    queries, labels = where // shares.shape[1], where % shares.shape[1]
    sure = _mask_confidence(mask_logits)
    masks = mask_logits > 0
    return labels, found * sure[queries], masks[queries], _boxes(masks)[queries]


def _mask_confidence(mask_logits: Tensor) -> Tensor:
    """(Q,) mean probability where it is above a half."""
    inside = (mask_logits > 0).float()
    total = (mask_logits.float().sigmoid() * inside).sum((1, 2))
    return total / (inside.sum((1, 2)) + 1e-6)


def _boxes(masks: Tensor) -> Tensor:
    """(Q, 4) of (Q, H, W) bool."""
    boxes = torch.zeros(len(masks), 4)
    for index, mask in enumerate(masks):
        ys, xs = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(xs):
            boxes[index] = torch.tensor([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
    return boxes


class Mask2FormerDetector:
    """Objects of COCO's classes in any picture, in GenEval's words.

    Args:
        folder: of a Mask2FormerForUniversalSegmentation for instances of COCO's 80 classes, with
            its image processor.
        clip: folder of a CLIPModel with its processor, for the colours.
        least: detections of a lower confidence are not handed on; GenEval asks for 0.3.

    Raises:
        ValueError: where a folder is missing, holds something else, or has other classes.
    """

    rules = Rules()

    def __init__(
        self,
        folder: str | Path,
        clip: str | Path,
        *,
        device: str | torch.device = "cpu",
        least: float = 0.3,
    ) -> None:
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        self.folder, self.device, self.least = Path(folder), torch.device(device), least
        self.colors = ClipColors(clip, device=device)
        self.model = load_judge(self.folder, "mask2former", Mask2FormerForUniversalSegmentation)
        self.model = self.model.to(self.device).eval()
        self.processor = AutoImageProcessor.from_pretrained(self.folder)
        _check_classes(self.model.config.id2label, self.folder)

    @property
    def name(self) -> str:
        """The folder's name, beginning with mask2former."""
        name = self.folder.resolve().name
        return name if name.startswith("mask2former") else f"mask2former-{name}"

    @property
    def card(self) -> dict[str, Any]:
        """What must be equal for two results to compare."""
        return {
            "name": self.name,
            "weights sha256": weight_hashes(self.folder),
            "dtype": model_dtype(self.model),
            "size": {k: v for k, v in dict(self.processor.size).items() if v is not None},
            "size divisor": self.processor.size_divisor,
            "most detections": _MAX_PER_IMAGE,
            "colours": self.colors.card,
            "official": "no: the official numbers are those of mmdet's Mask2Former Swin-S "
            "(mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco) and open_clip's ViT-L-14 of OpenAI",
        }

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> list[Instance]:
        """Every detection above `least`."""
        image = image.convert("RGB")
        inputs = self.processor(images=[image], return_tensors="pt")
        pixels, valid = inputs["pixel_values"], inputs["pixel_mask"][0].bool()
        out = self.model(pixel_values=pixels.to(self.device, self.model.dtype))
        classes, masks = out.class_queries_logits[0].float(), out.masks_queries_logits[0].float()
        # No confidence is above that of the class: the other queries' masks need not be enlarged.
        hopeful = classes.softmax(-1)[:, :-1].amax(1) > self.least
        if not hopeful.any():
            return []
        classes, masks = classes[hopeful], masks[None, hopeful]
        masks = F.interpolate(masks, pixels.shape[-2:], mode="bilinear")
        # The padding goes; then the picture's own size.
        masks = masks[:, :, : int(valid.any(1).sum()), : int(valid.any(0).sum())]
        masks = F.interpolate(masks, (image.height, image.width), mode="bilinear")[0]
        labels, scores, masks, boxes = instances(classes.cpu(), masks.cpu())
        return [
            Instance(
                CLASSES[int(labels[i])],
                tuple(boxes[i].tolist()),
                float(scores[i]),
                masks[i].numpy(),
                image,
                self.colors,
            )
            for i in (scores > self.least).nonzero().flatten().tolist()
        ]


class ClipColors:
    """Which of GenEval's ten colours an object has, by CLIP without training.

    Args:
        folder: of a CLIPModel with its image processor and tokenizer.
    """

    def __init__(self, folder: str | Path, *, device: str | torch.device = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        self.folder, self.device = Path(folder), torch.device(device)
        self.model: CLIPModel = load_judge(self.folder, "clip", CLIPModel)
        self.model = self.model.to(self.device).eval()
        self.processor = AutoImageProcessor.from_pretrained(self.folder)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self._of_class: dict[str, Tensor] = {}

    @property
    def card(self) -> dict[str, Any]:
        return {
            "name": self.folder.resolve().name,
            "weights sha256": weight_hashes(self.folder),
            "dtype": model_dtype(self.model),
            "colours": list(COLORS),
            "templates": list(TEMPLATES),
            "background": BACKGROUND,
        }

    @torch.no_grad()
    def __call__(self, crop: Image.Image, name: str) -> str:
        """The colour of the object in a crop, one of the class `name`."""
        pixels = self.processor(images=[crop], return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.device, self.model.dtype)
        seen = F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        return COLORS[int((seen @ self._texts(name).T).argmax())]

    def _texts(self, name: str) -> Tensor:
        """(10, D): for each colour the mean direction of its sentences."""
        if name not in self._of_class:
            lines = [t.format(color=c, name=name) for c in COLORS for t in TEMPLATES]
            tokens = self.tokenizer(lines, padding=True, return_tensors="pt").to(self.device)
            texts = F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)
            means = texts.view(len(COLORS), len(TEMPLATES), -1).mean(1)
            self._of_class[name] = F.normalize(means, dim=-1)
        return self._of_class[name]


def load_judge(folder: Path, kind: str, class_: Any) -> Any:
    """A model of transformers by its folder; ValueError where it holds something else."""
    import json

    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"no model in '{folder}' (it has no config.json); give a {kind} folder")
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):
        raise ValueError(f"'{config}' is not a config in JSON; copy it again") from None
    if found != kind:
        raise ValueError(f"'{folder}' holds a '{found}' model; give a {kind} folder")
    try:
        return class_.from_pretrained(folder)
    except OSError as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"cannot read the model in '{folder}': {first}") from None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalpha())


def _check_classes(id2label: dict[int, str], folder: Path) -> None:
    """Labels are read by their number; the names only show that the numbers are COCO's."""
    if len(id2label) != len(CLASSES):
        raise ValueError(
            f"the detector '{folder}' has {len(id2label)} classes, not COCO's {len(CLASSES)}; give "
            "one for instances of COCO"
        )
    for number, name in enumerate(CLASSES):
        if _plain(id2label[number]) not in map(_plain, (name, *_ALIASES.get(name, ()))):
            raise ValueError(
                f"class {number} of the detector '{folder}' is '{id2label[number]}', not '{name}'; "
                "give one with COCO's classes in COCO's order"
            )
