"""Validation loss of text to image: how surprised the model is by the codes of true pictures."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from vqrae.mllm import UnifiedModel, UnifiedObjective, UnifiedObjectiveConfig, UnifiedProcessor


@torch.no_grad()
def code_loss(
    model: UnifiedModel,
    processor: UnifiedProcessor,
    samples: Iterable[dict],
    *,
    limit: int = 1000,
    batch_size: int = 64,
) -> float:
    """Mean cross-entropy in nats over the codes of pictures, given their own captions.

    Args:
        samples: {"key", "image", "text", ...} as from ShardDataset; the first `limit` are read.

    Raises:
        ValueError: if there is no sample.
    """
    # The bare caption is the prompt; which of several captions depends on the batch's keys alone.
    config = UnifiedObjectiveConfig(cond_dropout=0.0, draw_wording=0.0)
    frozen = {name: p.requires_grad for name, p in model.named_parameters()}
    objective = UnifiedObjective(model, processor, config)
    was_training = model.training
    model.eval()
    total, count, stream = 0.0, 0, islice(iter(samples), limit)
    while batch := list(islice(stream, batch_size)):
        packed = objective.collate([{**sample, "task": "t2i"} for sample in batch])
        packed = {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in packed.items()}
        total += float(objective(packed, 0)[1]["loss_t2i"]) * len(batch)
        count += len(batch)
    model.train(was_training)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen[name])
    if not count:
        raise ValueError("there is no picture to measure the loss on; check the test shards")
    return total / count
