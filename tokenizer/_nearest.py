"""The nearest code of each latent, found in blocks; on CPUs with bf16 instructions in two passes.

Shapes: M latents, E code dimension, K codes, P pairs of a latent and a code.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# Latents and codes that are compared at once: 16 MiB of scores in fp32.
_LATENTS, _CODES = 1024, 4096
# Below this many multiplications two passes cost more than they save.
_WORTHWHILE = 1 << 30
# A latent with more near codes than these is compared with all codes in full precision.
_CANDIDATES = 24
_PAIRS = 2048


def nearest_codes(latents: Tensor, codes: Tensor) -> Tensor:
    """argmin |z - c|^2 of latents (M, E) over codes (K, E): (M,) int64, of equals the first."""
    # The norm first: a square of all codes would be as large as they are.
    offsets = -codes.norm(dim=-1).square() / 2
    two_passes = (
        latents.dtype == codes.dtype == torch.float32
        and latents.device.type == "cpu"
        and latents.numel() * len(codes) >= _WORTHWHILE
        and _has_bf16()
    )
    return (_in_two_passes if two_passes else _in_full)(latents, codes, offsets)


@cache
def _has_bf16() -> bool:
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _in_full(latents: Tensor, codes: Tensor, offsets: Tensor) -> Tensor:
    # argmin |z - c|^2 = argmax z.c - |c|^2 / 2
    parts = list(zip(codes.split(_CODES), offsets.split(_CODES), strict=True))
    found = [latents.new_empty(0, dtype=torch.long)]
    for some in latents.split(_LATENTS):
        best, index = some.new_full((len(some),), -torch.inf), None
        for number, (part, offset) in enumerate(parts):
            scores, where = torch.addmm(offset, some, part.T).max(-1)
            where += number * _CODES
            # Of equally near codes the first one, as if all were compared at once.
            index = where if index is None else torch.where(scores > best, where, index)
            best = torch.maximum(best, scores)
        found.append(index)
    return torch.cat(found)


def _in_two_passes(latents: Tensor, codes: Tensor, offsets: Tensor) -> Tensor:
    """As `_in_full`: all pairs in bf16, then in fp32 those that its rounding could have swapped.

    With z' and c' rounded, |z.c - z'.c'| <= |z - z'| |c| + |z'| |c - c'| (Cauchy-Schwarz), and the
    product is rounded once more; a code whose score lies below the best by more than twice that
    can't be the nearest. Both sides have the codes' mean taken off, which no distance notices, so
    that the norms, and with them the bound, are small.
    """
    mean = codes.mean(0)
    rounded = torch.empty_like(codes, dtype=torch.bfloat16)
    lengths, errors = torch.empty_like(offsets), torch.empty_like(offsets)
    blocks = (codes, rounded, lengths, errors)
    for part, low, length, error in zip(*(x.split(_PAIRS) for x in blocks), strict=True):
        centred = part - mean
        low.copy_(centred)
        length.copy_(centred.norm(dim=-1))
        error.copy_(centred.sub_(low).norm(dim=-1))
    longest, widest = lengths.max(), errors.max()
    centred_offsets = -lengths.square() / 2
    found = []
    for some in latents.split(_LATENTS):
        centred = some - mean
        low = centred.bfloat16()
        lost = (centred - low.float()).norm(dim=-1)
        norms = low.float().norm(dim=-1)
        # 2^-8 of the score: the product rounded to bf16, and fp32's own sums.
        margin = 2 * (lost * longest + norms * widest + norms * longest * 2**-8)
        rows, columns = _candidates(low, rounded, centred_offsets, margin)
        counts = torch.bincount(rows, minlength=len(some))
        # No candidate at all: not a number.
        unclear = (counts == 0) | (counts > _CANDIDATES)
        keep = ~unclear[rows]
        rows, columns = rows[keep], columns[keep]
        pairs = zip(rows.split(_PAIRS), columns.split(_PAIRS), strict=True)
        exact = torch.cat([(some[row] - codes[column]).norm(dim=-1) for row, column in pairs])
        best = exact.new_full((len(some),), torch.inf).scatter_reduce(0, rows, exact, "amin")
        columns = torch.where(exact == best[rows], columns, len(codes))
        index = torch.full_like(counts, len(codes)).scatter_reduce(0, rows, columns, "amin")
        if unclear.any():
            index[unclear] = _in_full(some[unclear], codes, offsets)
        found.append(index)
    return torch.cat(found)


def _candidates(
    latents: Tensor, codes: Tensor, offsets: Tensor, margin: Tensor
) -> tuple[Tensor, Tensor]:
    """Pairs (latent, code) whose scores are within the margin (M,) of the latent's best."""
    best = margin.new_full((len(latents),), -torch.inf)
    rows, columns, found, start = [], [], [], 0
    for part, offset in zip(codes.split(_CODES), offsets.split(_CODES), strict=True):
        scores = (latents @ part.T).float().add_(offset)
        best = torch.maximum(best, scores.amax(-1))
        row, column = (scores >= (best - margin)[:, None]).nonzero(as_tuple=True)
        rows.append(row)
        columns.append(column + start)
        found.append(scores[row, column])
        start += len(part)
    row, column, score = torch.cat(rows), torch.cat(columns), torch.cat(found)
    keep = score >= (best - margin)[row]
    return row[keep], column[keep]
