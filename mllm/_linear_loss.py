"""Cross-entropy after a linear head, without the logits of all positions being held at once.

The head's rows are taken in chunks, and a running maximum and sum (as in online softmax,
arXiv 1805.02867) give each position's loss. The backward pass makes each chunk's logits again:
a third more matmuls, but nothing of size (S, V) is kept. Chunks of rows, not of positions, since
then each row's gradient is done in one matmul, and written in its place at once.

torch (2.13 and later) has `linear_cross_entropy`, which chunks positions. As of 2.14, with
reduction "none", it rounds the losses of bf16 hidden states to bf16, adds up the weight's gradient
in the hidden states' precision, and does not follow autocast; and as it takes whole heads only,
every block would cost another gradient of the size of the whole head.

Shapes: S positions, P those of one block, T width, V rows of the head, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Most numbers in a chunk of logits (64 MiB in fp32): large enough for matmuls at full speed.
_CHUNK = 2**24


def linear_losses(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    blocks: Sequence[tuple[Tensor, int, int]],
) -> list[Tensor]:
    """Losses (P,) in nats, fp32, for each block: positions that are scored over some of the rows.

    Where the logits of all blocks, and the gradient of their rows, would fit into one chunk, they
    are made by the plain formula: there is nothing to save, and no matmul is done twice.

    Args:
        hidden: (S, T).
        targets: (S,), rows of the head.
        weight: (V, T), whole: what is left out of it is no row to be scored against.
        bias: (V,) or None.
        blocks: (positions (P,), start, stop): these positions are scored over the rows from start
            to stop, among which their targets must be. Rows of blocks do not overlap.
    """
    width = hidden.shape[-1]
    size = sum((stop - start) * max(len(at), width) for at, start, stop in blocks)
    if size <= _CHUNK:
        return [
            _plain(hidden[at], targets[at] - start, weight, bias, start, stop)
            for at, start, stop in blocks
        ]
    at = torch.cat([positions for positions, _, _ in blocks])
    spans = tuple((len(positions), start, stop) for positions, start, stop in blocks)
    dtype, kind = hidden.dtype, hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    losses = _LinearLosses.apply(hidden[at], targets[at], weight, bias, spans, dtype)
    return list(losses.split([count for count, _, _ in spans]))


def _plain(
    hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, start: int, stop: int
) -> Tensor:
    logits = F.linear(hidden, weight[start:stop], None if bias is None else bias[start:stop])
    return F.cross_entropy(logits.float(), targets, reduction="none")


class _LinearLosses(torch.autograd.Function):
    """hidden (S, T), targets (S,), weight (V, T), bias (V,) -> (S,).

    `spans` are (P, start, stop) of the blocks, which follow each other in `hidden`. Matmuls are
    done in `dtype`, all else in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        spans: tuple[tuple[int, int, int], ...],
        dtype: torch.dtype,
    ) -> Tensor:
        tops = hidden.new_full((len(hidden), 1), -torch.inf, dtype=torch.float32)
        sums, found = torch.zeros_like(tops), torch.zeros_like(tops)
        with _no_autocast(hidden):
            for block, start, stop in _blocks(spans):
                head = _Head(hidden[block].to(dtype), weight, bias, start, stop)
                top, total = tops[block], sums[block]
                for rows in head.chunks():
                    logits = head.logits(rows)
                    place, inside = _places(targets[block], rows)
                    found[block] += torch.where(inside, logits.gather(1, place), 0.0)
                    higher = torch.maximum(top, logits.amax(1, keepdim=True))
                    total.mul_((top - higher).exp())
                    total.add_(logits.sub_(higher).exp_().sum(1, keepdim=True))
                    top.copy_(higher)
        ctx.save_for_backward(hidden, targets, weight, bias, tops, sums)
        ctx.spans, ctx.dtype = spans, dtype
        return (tops - found + sums.log()).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, weight, bias, tops, sums = ctx.saved_tensors
        of_hidden, _, of_weight, of_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if of_hidden else None
        whole = sum(stop - start for count, start, stop in ctx.spans if count) == len(weight)
        new = torch.empty_like if whole else torch.zeros_like
        grad_weight = new(weight) if of_weight else None
        grad_bias = new(bias) if of_bias else None
        with _no_autocast(hidden):
            for block, start, stop in _blocks(ctx.spans):
                given = grad[block, None].float()
                share = given / sums[block]
                head = _Head(hidden[block].to(ctx.dtype), weight, bias, start, stop)
                for rows in head.chunks():
                    # A forward pass run again: with gradients enabled, as in torch's checkpointing
                    # (nothing here has any), so that who counts operations can leave it out.
                    with torch.enable_grad():
                        slopes = head.logits(rows)
                    slopes.sub_(tops[block]).exp_().mul_(share)
                    place, inside = _places(targets[block], rows)
                    slopes.scatter_(1, place, slopes.gather(1, place) - given * inside)
                    if grad_bias is not None:
                        grad_bias[rows] = slopes.sum(0)
                    rounded = slopes.to(ctx.dtype)
                    if grad_hidden is not None:
                        _add_product(grad_hidden[block], rounded, head.rows(rows))
                    if grad_weight is not None:
                        _put_product(grad_weight[rows], rounded.T, head.hidden)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, None, grad_weight, grad_bias, None, None


class _Head:
    """Rows `start` to `stop` of a head over hidden states (P, T), chunk by chunk."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, start: int, stop: int):
        self.hidden = hidden.detach()
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._start, self._stop = start, stop
        self._step = min(stop - start, max(1, _CHUNK // len(hidden)))
        # Used for every chunk: new memory costs a page fault for every 4 KiB of it on a CPU.
        self._room = hidden.new_empty(len(hidden) * self._step, dtype=torch.float32)

    def chunks(self) -> Iterator[slice]:
        for first in range(self._start, self._stop, self._step):
            yield slice(first, min(first + self._step, self._stop))

    def rows(self, rows: slice) -> Tensor:
        return self._weight[rows].to(self.hidden.dtype)

    def logits(self, rows: slice) -> Tensor:
        """(P, C) in fp32; those of the chunk before are gone then."""
        count = rows.stop - rows.start
        logits = self._room[: len(self.hidden) * count].view(len(self.hidden), count)
        _put_product(logits, self.hidden, self.rows(rows).T)
        return logits if self._bias is None else logits.add_(self._bias[rows])


def _blocks(spans: Sequence[tuple[int, int, int]]) -> Iterator[tuple[slice, int, int]]:
    """Where each block's positions lie, and its rows; without blocks that have none."""
    first = 0
    for count, start, stop in spans:
        if count:
            yield slice(first, first + count), start, stop
        first += count


def _places(targets: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """(P, 1) twice: each target's column in a chunk, and whether it is in that chunk at all."""
    targets = targets[:, None]
    inside = (targets >= rows.start) & (targets < rows.stop)
    return (targets - rows.start).clamp(0, rows.stop - rows.start - 1), inside


def _put_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out = left @ right, rounded to their precision first."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        out.add_(left @ right)


def _no_autocast(like: Tensor) -> AbstractContextManager:
    return torch.autocast(like.device.type, enabled=False)
