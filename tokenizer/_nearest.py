"""The nearest code of each latent, found in blocks; on CPUs with bf16 instructions in two passes.

Shapes: M latents, E code dimension, K codes.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from vqrae.tokenizer._cpu import has_bf16

# Latents and codes that are compared at once: 16 MiB of scores in fp32.
_LATENTS, _CODES = 1024, 4096
# Below this many multiplications two passes cost more than they save.
_WORTHWHILE = 1 << 30
# A latent with more near codes than these is compared with all codes in full precision.
_CANDIDATES = 24
_PAIRS = 2048
# bf16 rounds by less than this, relative; its instructions like rows of a multiple of 32.
_ROUNDING, _MULTIPLE = 2**-8, 32
# Every 128th code is of one group; only where a group's best is near are its codes looked at. A
# block of codes is whole groups.
_GROUPS = 128


class CodeIndex:
    """Codes (K, E) made ready to be searched: argmin |z - c|^2, of equals the first."""

    def __init__(self, codes: Tensor):
        self.codes = codes
        # The norm first: a square of all codes would be as large as they are.
        self._offsets = -codes.norm(dim=-1).square() / 2

    def nearest(self, latents: Tensor) -> Tensor:
        """(M, E) -> (M,) int64. Codes and latents are compared block by block."""
        two_passes = (
            latents.dtype == self.codes.dtype == torch.float32
            and latents.device.type == "cpu"
            and type(latents) is Tensor  # not one that only follows shapes
            and latents.numel() * len(self.codes) >= _WORTHWHILE
            and has_bf16()
        )
        search = self._in_two_passes if two_passes else self._in_full
        found = [search(some) for some in latents.split(_LATENTS)]
        return torch.cat(found) if found else latents.new_empty(0, dtype=torch.long)

    def _in_full(self, latents: Tensor) -> Tensor:
        # argmin |z - c|^2 = argmax z.c - |c|^2 / 2
        best, index = latents.new_full((len(latents),), -torch.inf), None
        parts = zip(self.codes.split(_CODES), self._offsets.split(_CODES), strict=True)
        for number, (part, offset) in enumerate(parts):
            scores, where = torch.addmm(offset, latents, part.T).max(-1)
            where += number * _CODES
            # Of equally near codes the first one, as if all were compared at once.
            index = where if index is None else torch.where(scores > best, where, index)
            best = torch.maximum(best, scores)
        return index

    def _in_two_passes(self, latents: Tensor) -> Tensor:
        """As `_in_full`: all pairs in bf16, then in fp32 those that rounding could have swapped.

        With z' and c' rounded, |z.c - z'.c'| <= |z - z'| |c| + |z'| |c - c'| (Cauchy-Schwarz), and
        the score is rounded once more; a code whose score lies below the best by more than twice
        that can't be the nearest. Both sides have the codes' mean taken off, and the scores their
        mean offset, which no comparison notices, so that what is rounded is small.
        """
        mean, codes, longest, widest, slip = self._rounded
        centred = latents - mean
        low = centred.bfloat16()
        lost = centred.sub_(low).norm(dim=-1)
        error = lost * longest + low.float().norm(dim=-1) * widest + slip
        # Two ones, for the two halves of the codes' offsets.
        low = F.pad(F.pad(low, (0, 2), value=1.0), (0, codes.shape[1] - low.shape[1] - 2))
        rows, columns = _candidates(low, codes, error)
        counts = torch.bincount(rows, minlength=len(latents))
        # No candidate at all: not a number.
        unclear = (counts == 0) | (counts > _CANDIDATES)
        keep = ~unclear[rows]
        rows, columns = rows[keep], columns[keep]
        pairs = zip(rows.split(_PAIRS), columns.split(_PAIRS), strict=True)
        exact = torch.cat([(latents[r] - self.codes[c]).norm(dim=-1) for r, c in pairs])
        best = exact.new_full((len(latents),), torch.inf).scatter_reduce(0, rows, exact, "amin")
        last = len(self.codes)
        columns = torch.where(exact == best[rows], columns, last)
        index = torch.full_like(counts, last).scatter_reduce(0, rows, columns, "amin")
        if unclear.any():
            index[unclear] = self._in_full(latents[unclear])
        return index

    @cached_property
    def _rounded(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The codes' mean (E,); the centred codes in bf16, with -|c|^2 / 2 behind them in two
        halves so that one product gives scores; the largest norm, and the largest errors of a code
        and of an offset."""
        count, width = self.codes.shape
        mean = self.codes.mean(0)
        rows, columns = _up(count, _GROUPS), _up(width + 2, _MULTIPLE)
        rounded = self.codes.new_zeros(rows, columns, dtype=torch.bfloat16)
        lengths, errors = torch.empty_like(self._offsets), torch.empty_like(self._offsets)
        blocks = [x.split(_PAIRS) for x in (self.codes, rounded[:count], lengths, errors)]
        for part, low, length, error in zip(*blocks, strict=True):
            centred = part - mean
            length.copy_(centred.norm(dim=-1))
            low[:, :width] = centred
            error.copy_(centred.sub_(low[:, :width]).norm(dim=-1))
        offsets = -lengths.square() / 2
        offsets -= offsets.mean()
        rounded[:count, width] = offsets
        rounded[:count, width + 1] = offsets - rounded[:count, width]
        rounded[count:, width] = -torch.inf  # no code
        slip = offsets.abs().max() * _ROUNDING**2
        return mean, rounded, lengths.max(), errors.max(), slip


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _candidates(latents: Tensor, codes: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of pairs whose scores, off by error (M,) and then rounded, may be the
    highest of their rows."""
    best = error.new_full((len(latents),), -torch.inf)
    rows, columns, found = [], [], []
    for number, part in enumerate(codes.split(_CODES)):
        scores = (latents @ part.T).view(len(latents), -1, _GROUPS)
        tops = scores.amax(1)
        best = torch.maximum(best, tops.amax(-1).float())
        least = best - 2 * (error + (best.abs() + 2 * error) * _ROUNDING)
        # Rounded down, so that nothing above it is lost.
        low = (least - least.abs() * _ROUNDING).bfloat16()
        row, group = (tops >= low[:, None]).nonzero(as_tuple=True)
        near = scores[row, :, group]
        which, place = (near >= low[row, None]).nonzero(as_tuple=True)
        rows.append(row[which])
        columns.append(place * _GROUPS + group[which] + number * _CODES)
        found.append(near[which, place])
    row, column, score = torch.cat(rows), torch.cat(columns), torch.cat(found)
    keep = score >= low[row]
    return row[keep], column[keep]
