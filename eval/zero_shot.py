"""Zero-shot classification through the teacher's text tower: did stage 2 keep the semantics?

Legend: B batch, N image tokens, D encoder width, T text width, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import normalize
from vqrae.eval._pictures import device_of, pixel_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase, SiglipModel
    from vqrae.eval._pictures import Preprocess
    from vqrae.tokenizer import VQRAEModel

    Pair = tuple[str, str]


def prompt_of(pair: Pair) -> str:
    """The text that stands for a (color, shape) pair, in the article that the captions use."""
    color, shape = pair
    return f"a photo of {'an' if color[0] in 'aeiou' else 'a'} {color} {shape}"


def single_object_scenes(count: int = 1000, *, seed: int = 0) -> tuple[list[np.ndarray], list]:
    """`count` scenes of one object, every colour-shape pair in turn, trained and held out alike.

    Returns (images, labels): (64, 64, 3) uint8 arrays and (color, shape) pairs.
    """
    from vqrae.data.scenes import Scene, place, render, sample_background

    rng = np.random.default_rng([seed, 0x5A])
    pairs = all_pairs()
    labels = [pairs[index % len(pairs)] for index in range(count)]
    images = [render(Scene(place(rng, [pair]), sample_background(rng))) for pair in labels]
    return images, labels


def all_pairs() -> list[Pair]:
    """The 64 (color, shape) pairs of the scenes world."""
    from vqrae.data.scenes import COLORS, SHAPES

    return [(color, shape) for color in COLORS for shape in SHAPES]


def teacher_encoder(
    teacher: SiglipModel, *, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.5,) * 3
) -> Callable[[Tensor], Tensor]:
    """The teacher's own features: a function of (B, 3, H, W) in [0, 1] to (B, N, D)."""
    device = device_of(teacher)
    center, spread = (torch.tensor(v, device=device).view(3, 1, 1) for v in (mean, std))

    def encode(pixels: Tensor) -> Tensor:
        return teacher.vision_model(pixel_values=(pixels - center) / spread).last_hidden_state

    return encode


@torch.no_grad()
def text_embeddings(
    teacher: SiglipModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Tensor:
    """(C, T) unit vectors of the texts by the teacher's text tower.

    Padded to the tower's full length: SigLIP reads its answer off the last position.
    """
    length = teacher.config.text_config.max_position_embeddings
    ids = tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=length,
        split_special_tokens=True,
        return_attention_mask=False,
        return_tensors="pt",
    )["input_ids"]
    output = teacher.get_text_features(input_ids=ids.to(device_of(teacher)))
    return normalize(getattr(output, "pooler_output", output), dim=-1)


@torch.no_grad()
def zero_shot_accuracy(
    encode: Callable[[Tensor], Tensor],
    teacher: SiglipModel,
    tokenizer: PreTrainedTokenizerBase,
    images: Iterable,
    labels: Sequence[Pair],
    *,
    held_out: Iterable[Pair] = (),
    pairs: Sequence[Pair] | None = None,
    embed_texts: Callable[[list[str]], Tensor] | None = None,
    preprocess: Preprocess | None = None,
    batch_size: int = 128,
) -> dict[str, Any]:
    """Share of images whose nearest text, such as 'a photo of a red circle', is their own.

    encode: (B, 3, H, W) in [0, 1] -> (B, N, D), a VQRAEModel's `encode` or teacher_encoder's
    function; its features go through the TEACHER's pooling head, and the texts through the
    teacher's text tower, so that only the features differ. labels: one (color, shape) an image.
    held_out: pairs never trained, reported apart. embed_texts: in place of text_embeddings where
    the teacher was trained with another padding.

    Returns accuracy, trained_pairs, held_out_pairs (accuracy over those alone, None where there
    are none), color and shape (half of the answer right), chance, images, each [{"id", "expected",
    "answer", "right"}].
    Raises ValueError where images and labels differ in number or the teacher has no pooling head.
    """
    head = getattr(teacher.vision_model, "head", None)
    if head is None:
        raise ValueError("the teacher has no pooling head; zero-shot needs a whole SiglipModel")
    pairs = list(all_pairs() if pairs is None else pairs)
    texts = [prompt_of(pair) for pair in pairs]
    if embed_texts is None:
        target = text_embeddings(teacher, tokenizer, texts)
    else:
        target = normalize(embed_texts(texts), dim=-1)
    device = device_of(teacher)
    chosen: list[int] = []
    for pixels in pixel_batches(images, batch_size, preprocess):
        pooled = normalize(head(encode(pixels.to(device))), dim=-1)
        # the teacher's logit scale and bias are the same for every text: the order stays
        chosen.extend((pooled @ target.T).argmax(-1).tolist())
    if len(chosen) != len(labels) or not chosen:
        raise ValueError(f"{len(chosen)} images and {len(labels)} labels; give one label an image")
    answers = [pairs[index] for index in chosen]
    unseen = set(held_out)
    right = np.array([answer == label for answer, label in zip(answers, labels, strict=True)])
    apart = np.array([label in unseen for label in labels])
    halves = np.array(
        [[a[i] == b[i] for i in range(2)] for a, b in zip(answers, labels, strict=True)]
    )

    def share(mask: np.ndarray) -> float | None:
        return float(right[mask].mean()) if mask.any() else None

    return {
        "accuracy": float(right.mean()),
        "trained_pairs": share(~apart),
        "held_out_pairs": share(apart),
        "color": float(halves[:, 0].mean()),
        "shape": float(halves[:, 1].mean()),
        "chance": 1 / len(pairs),
        "images": len(chosen),
        "each": [
            {"id": str(i), "expected": " ".join(e), "answer": " ".join(a), "right": a == e}
            for i, (e, a) in enumerate(zip(labels, answers, strict=True))
        ],
    }


def zero_shot_beside_teacher(
    tokenizer: VQRAEModel,
    teacher_dir: str | Path,
    *,
    count: int = 1024,
    seed: int = 0,
    preprocess: Preprocess | None = None,
) -> dict[str, dict[str, Any]]:
    """zero_shot_accuracy of a tokenizer's encoder and of its teacher, on the tokenizer's device.

    teacher_dir: a folder or hub name of a whole SiglipModel with its text tokenizer. count: scenes
    of one object, all pairs of colour and shape in turn.

    Returns {"encoder": ..., "teacher": ...}. Raises ValueError for a teacher that is not whole.
    """
    # at call: the command line starts without them
    from PIL import Image
    from transformers import AutoTokenizer, SiglipModel
    from vqrae.data.scenes import HELD_OUT_PAIRS
    from vqrae.tokenizer._loading import check_loaded, quiet_transformers

    with quiet_transformers():
        teacher, loaded = SiglipModel.from_pretrained(teacher_dir, output_loading_info=True)
        text_tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    check_loaded(teacher_dir, loaded, "the teacher")
    teacher = teacher.to(device_of(tokenizer)).eval()
    scenes, labels = single_object_scenes(count, seed=seed)
    pictures = [Image.fromarray(scene) for scene in scenes]
    config = tokenizer.config
    own = teacher_encoder(teacher, mean=config.pixel_mean, std=config.pixel_std)
    return {
        name: zero_shot_accuracy(
            encode,
            teacher,
            text_tokenizer,
            pictures,
            labels,
            held_out=HELD_OUT_PAIRS,
            preprocess=preprocess,
        )
        for name, encode in (("encoder", tokenizer.encode), ("teacher", own))
    }
