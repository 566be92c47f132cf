"""Pretraining of a small vision foundation model with the SigLIP loss (arXiv 2303.15343).

The built-in encoder of the scenes world comes from here; real encoders come pretrained.
Shapes: B batch, G global batch, D width, L caption tokens, R wrong captions a picture.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, SiglipImageProcessor, SiglipModel
from vqrae.data.augment import Augment
from vqrae.tokenizer.image_processing_vqrae import VQRAEImageProcessor
from vqrae.training import Objective, decay_groups
from vqrae.training._process import gather_objects


@dataclass(frozen=True, kw_only=True)
class VFMLossConfig:
    """Learning rate and caption handling of SigLIP pretraining."""

    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-5
    """Where its cosine ends."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    wording: Literal["random", "longest"] = "random"
    """Which of a picture's captions is read; the longest says most and is learnt from fastest."""
    hard_negatives: int = 0
    """Wrong captions of each picture's own, made by exchanging one word (after NegCLIP, arXiv
    2210.01936). Other pictures' captions differ in so many words that fine ones go unlearnt."""
    temperature_lr_factor: float = 10.0
    """Learning rate of the logit scale and bias, as a multiple of lr: two numbers that have far
    to go."""
    positives: Literal["own", "same_text"] = "own"
    """Which captions are right for a picture: its own alone, or all of the batch that read the
    same, for worlds so small that captions repeat."""
    augment: Augment = Augment()
    """What happens to the pictures."""


# Draws of an exchange before a caption is given up.
_TRIES = 16


def _neighbours(text: str) -> set[tuple[str, str]]:
    """Every two words that stand side by side."""
    words = re.findall(r"\w+", text.lower())
    return set(zip(words, words[1:], strict=False))


class VFMObjective(Objective):
    """Sigmoid loss between every picture and every caption of the global batch.

    Args:
        word_groups: words that may stand in for one another, such as colours; with
            config.hard_negatives one word of a caption is exchanged within its group.
        corpus: texts that hold every pair of neighbouring words a wrong caption may hold. Without
            it a pair that is never right would only ever be seen as wrong, and the model would
            learn to deny what it has not met.

    Samples hold "image" (PIL), "text", "key" and, where there are several wordings,
    `sample["json"]["captions"]`; config.wording says which of them is read.
    """

    unit = "images"

    def __init__(
        self,
        model: SiglipModel,
        tokenizer: PreTrainedTokenizerBase,
        config: VFMLossConfig,
        word_groups: Sequence[Sequence[str]] = (),
        corpus: Iterable[str] | None = None,
    ):
        super().__init__()
        if config.hard_negatives and not word_groups:
            raise ValueError("hard_negatives needs word_groups: words to exchange in captions")
        self.groups = {word: list(group) for group in word_groups for word in group}
        self.neighbours = None if corpus is None else {p for t in corpus for p in _neighbours(t)}
        self.model, self.config = model, config
        self.tokenizer = tokenizer
        self.max_length = model.config.text_config.max_position_embeddings
        self.processor = VQRAEImageProcessor(model.config.vision_config.image_size)

    def collate(self, samples: list[dict]) -> dict:
        texts = []
        for sample in samples:
            wordings = (sample.get("json") or {}).get("captions") or [sample["text"]]
            longest = self.config.wording == "longest"
            pick = int(torch.randint(len(wordings), ()))
            texts.append(max(wordings, key=len) if longest else wordings[pick])
        wrong = [self._exchange(text) for text in texts for _ in range(self.config.hard_negatives)]
        # SigLIP's text tower reads the last position and no mask: always pad to one length.
        ids = self.tokenizer(
            texts + wrong,
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
            split_special_tokens=True,
        )["input_ids"]
        rng = random.Random("\0".join(str(sample["key"]) for sample in samples))
        images = [self.config.augment(sample["image"], rng) for sample in samples]
        pixels = self.processor(images)["pixel_values"]
        batch = {"keys": [s["key"] for s in samples], "pixels": pixels * 2 - 1, "input_ids": ids}
        if wrong:
            repeats = range(self.config.hard_negatives)
            true = [text for text in texts for _ in repeats]
            batch["wrong"] = torch.tensor([a != b for a, b in zip(true, wrong, strict=True)])
        return batch

    def _exchange(self, text: str) -> str:
        """`text` with one word of a group exchanged; unchanged where none can be."""
        words = re.split(r"(\W+)", text)
        places = [place for place, word in enumerate(words) if word in self.groups]
        for _ in range(_TRIES if places else 0):
            place = places[int(torch.randint(len(places), ()))]
            others = [word for word in self.groups[words[place]] if word != words[place]]
            other = others[int(torch.randint(len(others), ()))]
            changed = "".join([*words[:place], other, *words[place + 1 :]])
            if self.neighbours is None or _neighbours(changed) <= self.neighbours:
                return changed
        return text

    def count(self, batch: dict) -> int:
        return len(batch["pixels"])

    def param_groups(self) -> list[dict]:
        c = self.config
        groups = decay_groups(
            nn.ModuleList([self.model.text_model, self.model.vision_model]),
            name="vfm",
            lr=c.lr,
            min_lr=c.min_lr,
            weight_decay=c.weight_decay,
        )
        temperature = {
            "name": "temperature",
            "params": [self.model.logit_scale, self.model.logit_bias],
            "lr": c.lr * c.temperature_lr_factor,
            "min_lr": c.min_lr,
            "weight_decay": 0.0,
        }
        return [*groups, temperature]

    def forward(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        out = self.model(input_ids=batch["input_ids"], pixel_values=batch["pixels"])
        images, count = out.image_embeds, len(out.image_embeds)
        scale, bias = self.model.logit_scale.exp(), self.model.logit_bias
        texts, offset = _gather(out.text_embeds[:count])
        logits = images @ texts.T * scale + bias
        right = self._right(batch["input_ids"][:count], offset, len(texts))
        loss = -F.logsigmoid((2 * right - 1) * logits).sum(-1).mean()
        with torch.no_grad():
            found = right.gather(1, logits.argmax(-1, keepdim=True))
            logs = {"retrieval": found.float().mean()}
        if "wrong" in batch:
            wrong = out.text_embeds[count:].view(count, -1, images.shape[-1])
            near = (images[:, None] * wrong).sum(-1) * scale + bias
            mask = batch["wrong"].view(near.shape)
            hard = (-F.logsigmoid(-near) * mask).sum(-1).mean()
            loss, logs["hard"] = loss + hard, hard.detach()
        return loss, logs

    def _right(self, ids: Tensor, offset: int, total: int) -> Tensor:
        """(B, L) caption tokens -> (B, G) of 0 and 1: which captions are right for a picture."""
        if self.config.positives == "own":
            own = torch.arange(len(ids), device=ids.device) + offset
            return F.one_hot(own, total)
        every = torch.cat([part.to(ids.device) for part in gather_objects(ids)])
        return (ids[:, None] == every).all(-1).long()

    def export(self, directory: Path) -> None:
        """The whole SigLIP model, its tokenizer, and an image processor that any user can load."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        size = self.model.config.vision_config.image_size
        SiglipImageProcessor(
            size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ).save_pretrained(directory)


def _gather(texts: Tensor) -> tuple[Tensor, int]:
    """(B, D) of this rank -> (G, D) of all ranks, gradients included, and where ours begin."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return texts, 0
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(texts)), dist.get_rank() * len(texts)
