"""Pretraining of a small vision foundation model with the SigLIP loss (arXiv 2303.15343).

The built-in encoder of the scenes world comes from here; real encoders come pretrained.
Shapes: B batch, G global batch, D width, L caption tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase, SiglipImageProcessor, SiglipModel
from vqrae.tokenizer.image_processing_vqrae import VQRAEImageProcessor
from vqrae.training import Objective


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


class VFMObjective(Objective):
    """Sigmoid loss between every picture and every caption of the global batch.

    Samples hold "image" (PIL), "text", "key" and, where there are several wordings,
    sample["json"]["captions"]; config.wording says which of them is read.
    """

    unit = "images"

    def __init__(
        self, model: SiglipModel, tokenizer: PreTrainedTokenizerBase, config: VFMLossConfig
    ):
        super().__init__()
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
        # SigLIP's text tower reads the last position and no mask: always pad to one length.
        ids = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
            split_special_tokens=True,
        )["input_ids"]
        pixels = self.processor([sample["image"] for sample in samples])["pixel_values"]
        return {"keys": [s["key"] for s in samples], "pixels": pixels * 2 - 1, "input_ids": ids}

    def count(self, batch: dict) -> int:
        return len(batch["pixels"])

    def param_groups(self) -> list[dict]:
        c = self.config
        group = {"lr": c.lr, "min_lr": c.min_lr, "weight_decay": c.weight_decay}
        return [{"name": "vfm", "params": list(self.parameters()), **group}]

    def forward(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        out = self.model(input_ids=batch["input_ids"], pixel_values=batch["pixels"])
        texts, offset = _gather(out.text_embeds)
        logits = out.image_embeds @ texts.T * self.model.logit_scale.exp() + self.model.logit_bias
        own = torch.arange(len(logits), device=logits.device) + offset
        signs = F.one_hot(own, len(texts)) * 2 - 1
        loss = -F.logsigmoid(signs * logits).sum(-1).mean()
        with torch.no_grad():
            right = (logits.argmax(-1) == own).float().mean()
        return loss, {"retrieval": right}

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
