"""Sequences with pictures in them, packed into rows of one batch.

Short sequences share a row: `position_ids` begin again at 0 where a new one begins, from which
transformers builds a mask that keeps them apart. So almost no padding is computed.

Shapes: R rows, L row length, P pieces (packed sequences), M pictures, N image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

IGNORE = -100


@dataclass
class Piece:
    """One training sequence under construction."""

    task: int = 0
    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    """Index into the batch's pictures, for each run of pads, in order."""
    draws: list[int] = field(default_factory=list)
    """The same for each run of codes, whose ids are placeholders until the forward pass."""
    is_code: list[bool] = field(default_factory=list)

    def add(self, ids: list[int], *, scored: bool = False, code: bool = False) -> None:
        self.ids += ids
        self.labels += ids if scored else [IGNORE] * len(ids)
        self.is_code += [code] * len(ids)

    def __len__(self) -> int:
        return len(self.ids)


def arrange(lengths: list[int], row_length: int) -> list[list[int]]:
    """First-fit decreasing: indices of `lengths` in rows of at most `row_length`."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        row = next((r for r, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_length)
        rows[row].append(index)
        room[row] -= length
    return rows


def pack(pieces: list[Piece], pad_id: int, *, together: bool = True) -> dict[str, Tensor]:
    """Rows of tensors: input_ids, labels, position_ids, tasks, is_code (R, L); looks, draws.

    Args:
        together: False gives every sequence its own row.
    """
    lengths = [len(piece) for piece in pieces]
    longest = max(lengths)
    rows = arrange(lengths, longest) if together else [[i] for i in range(len(pieces))]
    shape = (len(rows), longest)
    input_ids = torch.full(shape, pad_id)
    labels = torch.full(shape, IGNORE)
    # A padded position is a sequence of its own: it sees itself, and nobody sees it.
    position_ids = torch.zeros(shape, dtype=torch.long)
    tasks = torch.zeros(shape, dtype=torch.long)
    is_code = torch.zeros(shape, dtype=torch.bool)
    looks: list[int] = []
    draws: list[int] = []
    for row, members in enumerate(rows):
        start = 0
        for index in members:
            piece = pieces[index]
            span = slice(start, start + len(piece))
            input_ids[row, span] = torch.tensor(piece.ids)
            labels[row, span] = torch.tensor(piece.labels)
            position_ids[row, span] = torch.arange(len(piece))
            tasks[row, span] = piece.task
            is_code[row, span] = torch.tensor(piece.is_code)
            looks += piece.looks
            draws += piece.draws
            start = span.stop
    return {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": position_ids,
        "tasks": tasks,
        "is_code": is_code,
        "looks": torch.tensor(looks, dtype=torch.long),
        "draws": torch.tensor(draws, dtype=torch.long),
    }
