"""Requests of different kinds, lengths and ages through one batch of the model.

A step gives every running request its next token: texts and drawings, guided and not, together. A
request that comes while others run joins with the next step; one that ends makes room at once.
Shapes: R rows, T text width, M pictures, N image tokens, D encoder width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from vqrae.generation._prompts import evaluating
from vqrae.generation._ragged import RaggedCache
from vqrae.generation._slots import Slots, token_keys
from vqrae.generation._step_attention import one_position
from vqrae.generation.guidance import Guidance, Schedule, guided_logits
from vqrae.generation.sampling import check_sampling, pick, uniforms_for
from vqrae.generation.text import stop_tokens, writable_logits
from vqrae.mllm import UnifiedModel, UnifiedProcessor


@dataclass(kw_only=True, eq=False)
class Request:
    """What is common to writing and drawing. The fields of results grow while it runs."""

    ids: Sequence[int]
    """The prompt."""
    features: Tensor | None = None
    """(M, N, D) of the pictures in it, in order."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    on_token: Callable[[Request], None] | None = None
    """Called after each token."""

    written: list[int] = field(default_factory=list, init=False)
    """Tokens so far: of text, or codes in [0, K)."""
    stopped_by: str | None = field(default=None, init=False)
    """None while it waits or runs; "end", "length", "draw", "cancelled"."""

    def cancel(self) -> None:
        """Leave with the next step; tokens written so far stay. May be called from any thread."""
        self.stop("cancelled")

    def stop(self, why: str) -> None:
        """What stops it first is why it stopped."""
        self.stopped_by = self.stopped_by or why


@dataclass(kw_only=True, eq=False)
class WriteRequest(Request):
    """Text after a prompt; see generate_ids for the options."""

    temperature: float = 0.0
    max_new_tokens: int = 64
    allow_draw: bool = False


@dataclass(kw_only=True, eq=False)
class DrawRequest(Request):
    """A picture after a prompt that ends in `<|image_start|>`; see sample_codes for the options."""

    guidance_scale: float = 1.0
    guidance_schedule: Schedule = "constant"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    min_p: float = 0.0


@dataclass(eq=False)
class _Row:
    """One row of the batch: a request, or the unconditional half of a drawing."""

    request: Request
    uniforms: Tensor
    """(steps,), what its tokens are drawn with."""
    guidance: Guidance | None = None
    half: _Row | None = None
    """The unconditional half, while there is one."""
    is_half: bool = False
    place: int = 0
    token: int = 0
    """What it goes on with."""


class Engine:
    """Runs requests until they end.

    Args:
        rows: most rows in a batch; a guided drawing takes two.
        room: most tokens of a row; None takes the processor's max_length.

    What an ended request has read stays in its row until that is needed: a prompt that goes on from
    there, such as a conversation's next turn, is read from where they part.

    Raises:
        ValueError: for fewer than two rows.
    """

    def __init__(
        self,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        *,
        rows: int = 16,
        room: int | None = None,
    ):
        if rows < 2:
            raise ValueError(f"rows must be at least 2, the halves of a drawing, not {rows}")
        self.model, self.processor = model, processor
        self.room = room or processor.max_length
        self._cache = RaggedCache(model.config.text_config, rows, self.room)
        self._slots = Slots(self._cache, model.device)
        self._waiting: deque[Request] = deque()
        self._rows: list[_Row] = []
        width = model.config.text_config.hidden_size
        self._hidden = torch.zeros(rows, width, device=model.device, dtype=model.dtype)
        self._unconditional = processor.encode_draw(unconditional=True)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._main_rows())

    def check(self, request: Request) -> None:
        """Raise ValueError for an option out of its range, or a prompt that leaves no room."""
        check_sampling(
            request.temperature, request.top_k, request.top_p, getattr(request, "min_p", 0.0)
        )
        if isinstance(request, DrawRequest):
            _guidance_of(request)
            need = len(request.ids) + self.model.config.num_image_tokens
        else:
            if request.max_new_tokens < 1:
                raise ValueError(f"max_new_tokens must be at least 1, not {request.max_new_tokens}")
            need = len(request.ids) + 1
        if need > self.room:
            raise ValueError(
                f"the conversation needs {need} tokens, more than the limit of {self.room}; "
                "shorten it"
            )

    def submit(self, request: Request) -> None:
        """Let a request run as soon as there is room; raises what `check` raises."""
        self.check(request)
        self._waiting.append(request)

    def reset(self) -> None:
        """Forget all requests."""
        self._waiting.clear()
        self._rows.clear()
        self._slots = Slots(self._cache, self.model.device)

    def run(self) -> None:
        """Until nothing is left to do."""
        while self._waiting or self._rows:
            self.step()

    def step(self) -> list[Request]:
        """One token for each request that there is room for.

        Returns the requests that ended, the cancelled among them.
        """
        ended = [request for request in self._waiting if request.stopped_by]
        self._waiting = deque(request for request in self._waiting if not request.stopped_by)
        with evaluating(self.model):
            ended += self._drop_ended()
            self._admit()
            self._write_all()
            self._draw_all()
            for row in self._main_rows():
                if row.request.on_token is not None:
                    row.request.on_token(row.request)
            ended += self._drop_ended()
            if self._rows:
                self._advance()
        return ended

    # -- rows in and out ---------------------------------------------------------------------

    def _main_rows(self) -> list[_Row]:
        return [row for row in self._rows if not row.is_half]

    def _admit(self) -> None:
        """Begin waiting requests in their order, while they fit."""
        while self._waiting:
            request = self._waiting[0]
            guidance = _guidance_of(request) if isinstance(request, DrawRequest) else None
            guided = guidance is not None and bool(guidance.rows)
            if len(self._rows) + 1 + guided > self._cache.rows:
                return
            self._waiting.popleft()
            uniforms = uniforms_for([request.seed], self._steps(request))[0]
            row = _Row(request, uniforms.to(self.model.device), guidance)
            self._begin(row, request.ids, request.features)
            if guided:
                row.half = _Row(request, uniforms, is_half=True)
                self._begin(row.half, self._unconditional, None)

    def _steps(self, request: Request) -> int:
        if isinstance(request, DrawRequest):
            return self.model.config.num_image_tokens
        return min(request.max_new_tokens, self.room - len(request.ids))

    def _begin(self, row: _Row, ids: Sequence[int], features: Tensor | None) -> None:
        row.place = len(self._rows)
        config = self.model.config
        keys = token_keys(ids, config.image_pad_id, features)
        held = self._slots.take(row.place, keys)
        self._rows.append(row)
        here = slice(row.place, row.place + 1)
        tokens = torch.tensor([list(ids)], device=self.model.device)
        embeddings = self.model.embed(tokens, features=features)[:, held:]
        positions, mask = self._cache.aim(here, self._slots.lengths[here], len(ids) - held)
        hidden = self.model.decode(embeddings, mask, positions, self._cache)
        self._hidden[row.place] = hidden[0, -1]
        self._slots.grew(row.place, keys[held:])

    def _drop_ended(self) -> list[Request]:
        ended = [row for row in self._main_rows() if row.request.stopped_by]
        for row in ended:
            self._drop(row)
            if row.half is not None:
                self._drop(row.half)
        return [row.request for row in ended]

    def _drop(self, row: _Row) -> None:
        """The last row takes the place of this one, which no longer runs but is kept."""
        last = self._rows.pop()
        if last is row:
            return
        self._slots.swap(last.place, row.place)
        self._hidden[row.place] = self._hidden[last.place]
        self._rows[row.place] = last
        last.place = row.place

    # -- a step ------------------------------------------------------------------------------

    def _write_all(self) -> None:
        rows = [row for row in self._main_rows() if isinstance(row.request, WriteRequest)]
        if not rows:
            return
        hidden = self._hidden[[row.place for row in rows]]
        logits = writable_logits(self.model, hidden, [row.request.allow_draw for row in rows])
        stops = stop_tokens(self.model, self.processor)
        for row, token in zip(rows, _pick_each(rows, logits), strict=True):
            row.token = token
            if token in stops:
                row.request.stop(stops[token])
                continue
            row.request.written.append(token)
            if len(row.request.written) == len(row.uniforms):
                row.request.stop("length")

    def _draw_all(self) -> None:
        rows = [row for row in self._main_rows() if isinstance(row.request, DrawRequest)]
        if not rows:
            return
        steps = self.model.config.num_image_tokens
        for row in rows:
            if row.half is not None and row.guidance.is_over(len(row.request.written), steps):
                self._drop(row.half)
                row.half = None
        halves, guided, scales = [], [], [torch.empty(0, 1)]
        for number, row in enumerate(rows):
            scale = row.guidance.at(len(row.request.written), steps)
            if len(scale):
                halves.append(row.half)
                guided.append(number)
                scales.append(scale)
        least = [row.request.min_p for row in rows]
        hidden = self._hidden[[row.place for row in [*rows, *halves]]]
        logits = self.model.code_logits(hidden).float()
        logits = guided_logits(
            logits[: len(rows)],
            logits[len(rows) :],
            torch.tensor(guided, dtype=torch.long, device=logits.device),
            torch.cat(scales),
            torch.tensor(least)[:, None] if any(least) else None,
        )
        for row, code in zip(rows, _pick_each(rows, logits), strict=True):
            row.request.written.append(code)
            row.token = code + self.model.config.code_offset
            if row.half is not None:
                row.half.token = row.token
            if len(row.request.written) == steps:
                row.request.stop("length")

    def _advance(self) -> None:
        """Every row reads its token."""
        here = slice(0, len(self._rows))
        ids = torch.tensor([[row.token] for row in self._rows], device=self.model.device)
        # A code's place is that of the one written last; for text it says nothing.
        places = torch.tensor(
            [[len(row.request.written) - 1] for row in self._rows], device=self.model.device
        )
        places = places.clamp(min=0) % self.model.config.num_image_tokens
        positions, mask = self._cache.aim(here, self._slots.lengths[here], 1)
        embeddings = self.model.embed(ids, places=places)
        with one_position(self.model):
            hidden = self.model.decode(embeddings, mask, positions, self._cache)
        self._hidden[here] = hidden[:, -1]
        for row in self._rows:
            self._slots.grew(row.place, [row.token])


def _guidance_of(request: DrawRequest) -> Guidance:
    return Guidance(request.guidance_scale, 1, request.guidance_schedule, request.guidance_interval)


def _pick_each(rows: list[_Row], logits: Tensor) -> list[int]:
    """The next token of each row of `logits`; those that are sampled alike together."""
    alike: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        request = row.request
        alike.setdefault((request.temperature, request.top_k, request.top_p), []).append(i)
    found: list[int] = [0] * len(rows)
    for options, members in alike.items():
        uniforms = torch.stack([rows[i].uniforms[len(rows[i].request.written)] for i in members])
        for i, token in zip(
            members, pick(logits[members], uniforms, *options).tolist(), strict=True
        ):
            found[i] = token
    return found
