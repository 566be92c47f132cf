"""Offsets for the logits of codes that training never drew.

Shared rows (code_rows.py) make such codes drawable: their rows say what they look like. But nothing
in training decides how likely they are, and between the 42 of the scenes world it differs tenfold.
Each gets an offset that gives it the same average, a fifth of an even share, where text asks for
the pictures of training. Not in the paper.

Tried on the scenes world, 14,000 steps, guidance 2: held-out colours drawn right 67% without
offsets, 91% with them; one offset for all gives 78% to 91%, but with 91% only 83% of the counts
instead of 91%. The average must be over pictures that are asked for: where no text is given, such
codes are six times as likely.

Shapes: K codebook size.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor
from vqrae.mllm.modeling_unified import UnifiedModel
from vqrae.mllm.objective import UnifiedObjective
from vqrae.mllm.objective_config import UnifiedObjectiveConfig
from vqrae.mllm.processing_unified import UnifiedProcessor

_SHARE = 0.2  # multiple of an even share
_BATCH = 100


@torch.no_grad()
def fit_code_bias(
    model: UnifiedModel, processor: UnifiedProcessor, samples: Iterable[dict], pictures: int = 4000
) -> Tensor:
    """Set `code_bias` of a model on the CPU from training samples ("key", "image", "text"), and
    return it, (K,).

    Args:
        samples: all that training drew: a code in none of them counts as never drawn.
        pictures: of so many of them, the first (a whole number of batches), chances are taken.
    """
    model.eval()
    config = UnifiedObjectiveConfig(cond_dropout=0.0, packed=False)
    objective = UnifiedObjective(model, processor, config).eval()
    size, first = model.config.codebook_size, model.config.code_offset
    counts, chances, places = torch.zeros(size), torch.zeros(size, dtype=torch.double), 0
    model.code_bias = None
    stream, seen = iter(samples), 0
    while some := list(islice(stream, _BATCH)):
        if seen >= pictures:
            images = processor.image_processor([sample["image"] for sample in some])
            codes = model.vqrae.tokenize(images["pixel_values"]).flatten()
        else:
            batch = objective.collate([sample | {"task": "t2i"} for sample in some])
            hidden, labels = objective.read(batch)
            labels = labels[:, 1:]
            drawn = labels >= first
            codes = labels[drawn] - first
            chances += model.code_logits(hidden[:, :-1][drawn]).float().softmax(-1).sum(0)
            places += len(codes)
        counts += torch.bincount(codes, minlength=size)
        seen += len(some)
    wanted = (_SHARE / size / (chances / max(places, 1)).clamp_min(1e-12)).log().float()
    model.code_bias = torch.where(counts > 0, torch.zeros(size), wanted)
    model.config.code_bias = True
    return model.code_bias
