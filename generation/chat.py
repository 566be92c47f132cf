"""A conversation in which the model sees, answers, draws, and looks at what it drew.

Shapes: M pictures, N image tokens, D encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor
from vqrae.generation._prompts import join_features
from vqrae.generation._streamed_text import StreamedText
from vqrae.generation.draw import codes_to_images, partial_images, picture_seed
from vqrae.generation.engine import DrawRequest, Engine, Request, WriteRequest
from vqrae.generation.sampler import own_sampling
from vqrae.generation.sampling import check_sampling
from vqrae.generation.text import features_of
from vqrae.mllm import UnifiedModel, UnifiedProcessor
from vqrae.mllm.processing_unified import IMAGE_PLACE


@dataclass(frozen=True)
class Reply:
    """What the model said, drew, or both."""

    text: str
    images: list[Image.Image] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How a ChatSession writes and draws."""

    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    text_temperature: float = 0.0
    """Of answers; 0 takes the most likely token."""
    guidance_scale: float | None = None
    """Of drawings; 1 is no guidance, None the model's own."""
    temperature: float = 1.0
    """Of drawings; 0 takes the most likely code."""
    top_k: int = 0
    """Of drawings; 0 keeps all codes."""
    top_p: float = 1.0
    """Of drawings; 1 keeps all codes."""
    min_p: float | None = None
    """Of drawings; 0 keeps all codes, None is the model's own. See `plausible` in sampler.py."""
    seed: int = 0
    """The n-th turn is sampled with seed + n."""

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k, self.top_p, self.min_p or 0.0)
        check_sampling(self.text_temperature, 0, 1.0)


class ChatSession:
    """One conversation; `say` is a turn of the user and gives the model's.

    The model itself decides to draw, by beginning its turn with `<|image_start|>`. What it drew is
    part of the conversation: the next question that brings no picture of its own is asked with
    the drawing in view. What was said is read once: a turn costs what is new in it.

    Args:
        on_text: called with each piece of an answer as it is written.
        on_drawing: called after each code of a drawing with the picture as far as it is drawn.
        options: fields of ChatOptions.
    """

    def __init__(
        self,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        *,
        on_text: Callable[[str], None] | None = None,
        on_drawing: Callable[[Image.Image], None] | None = None,
        **options,
    ):
        self.model, self.processor = model, processor
        self.options = ChatOptions(**options)
        self.on_text, self.on_drawing = on_text, on_drawing
        self._engine = Engine(model, processor, rows=2)
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self.turns: list[tuple[str, Reply]] = []
        self._ids: list[int] = list(self.processor.trusted(self.processor.conversation_prefix))
        self._features: list[Tensor] = []
        self._unseen: Tensor | None = None

    @property
    def drawings(self) -> list[Image.Image]:
        """All that was drawn so far, in order."""
        return [image for _, reply in self.turns for image in reply.images]

    def say(self, text: str, images: Sequence[Image.Image] = ()) -> Reply:
        """One turn: `text`, with pictures before it, or where it says `<image>`.

        Raises:
            ValueError: for an empty text, another number of `<image>` than pictures, or a
                conversation that has become too long; the conversation stays as it was.
        """
        if not text.replace(IMAGE_PLACE, "").strip():
            raise ValueError("the message is empty; write a question or what to draw")
        images = list(images)
        if images and IMAGE_PLACE not in text:
            text_with_places = f"{IMAGE_PLACE}\n" * len(images) + text
        else:
            text_with_places = text
        features = features_of(self.model, self.processor, images) if images else None
        ids = self._asked(text_with_places, len(images))
        looks = self._looks_next(images)
        written = self._write(ids, features, 1) if looks else self._write(ids, features)
        if looks and written.stopped_by != "draw":
            # It does not draw, so it is a question: about what it drew last.
            features = self._unseen
            ids = self._asked(f"{IMAGE_PLACE}\n{text}", 1)
            written = self._write(ids, features)
        ids = ids + written.written
        if written.stopped_by == "draw":
            return self._draw(text, ids, features, self.processor.text(written.written))
        self._end_turn(text, ids, features, Reply(self.processor.text(written.written)))
        if features is not None:
            self._unseen = None
        return self.turns[-1][1]

    def draw(self, prompt: str) -> Reply:
        """One turn that is a drawing of `prompt`, whatever the model would have done.

        Raises:
            ValueError: as in `say`.
        """
        if not prompt.strip():
            raise ValueError("the prompt is empty; write what to draw")
        return self._draw(prompt, self._asked(prompt, 0), None, "")

    def _looks_next(self, images: list[Image.Image]) -> bool:
        return not images and self._unseen is not None

    def _asked(self, text: str, images: int) -> list[int]:
        turn = self.processor.user_turn(text, images)
        return [*self._ids, *turn, *self.processor.trusted(self.processor.assistant_prefix)]

    def _write(
        self, ids: list[int], features: Tensor | None, limit: int | None = None
    ) -> WriteRequest:
        """What the model says next; only a look at its first token where there is a limit."""
        processor, options = self.processor, self.options
        processor.check_length(len(ids) + 1, "the conversation with its answer")
        request = WriteRequest(
            ids=ids,
            features=join_features([*self._features, features]),
            max_new_tokens=limit or options.max_new_tokens,
            temperature=options.text_temperature,
            seed=options.seed + len(self.turns),
            allow_draw=True,
        )
        if self.on_text is None or limit:
            self._run(request)
            return request
        streamed = StreamedText(processor.text)

        def tell(last: bool) -> None:
            if piece := streamed.more(request.written, last=last):
                self.on_text(piece)

        request.on_token = lambda _: tell(last=False)
        self._run(request)
        tell(last=True)
        return request

    def _run(self, request: Request) -> None:
        self._engine.submit(request)
        try:
            self._engine.run()
        except BaseException:
            # Interrupted in the middle of it.
            self._engine.reset()
            raise

    def _draw(self, said: str, ids: list[int], features: Tensor | None, text: str) -> Reply:
        processor, options = self.processor, self.options
        ids = [*ids, processor.image_start_id]
        processor.check_length(len(ids) + processor.num_image_tokens + 1)
        guidance_scale, min_p = own_sampling(self.model, options.guidance_scale, options.min_p)
        request = DrawRequest(
            ids=ids,
            features=join_features([*self._features, features]),
            guidance_scale=guidance_scale,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=min_p,
            seed=picture_seed(said, options.seed + len(self.turns)),
        )
        if self.on_drawing is not None:
            request.on_token = self._show
        self._run(request)
        codes = torch.tensor([request.written], device=self.model.device)
        images = codes_to_images(self.model, processor, codes)
        ids += [code + processor.code_offset for code in codes[0].tolist()]
        ids.append(processor.image_end_id)
        self._end_turn(said, ids, features, Reply(text, images))
        self._unseen = features_of(self.model, processor, images)
        return self.turns[-1][1]

    def _show(self, request: Request) -> None:
        codes = torch.tensor([request.written], device=self.model.device)
        self.on_drawing(partial_images(self.model, self.processor, codes)[0])

    def _end_turn(self, said: str, ids: list[int], features: Tensor | None, reply: Reply) -> None:
        suffix = self.processor.trusted(self.processor.assistant_suffix)
        self._ids = [*ids, *suffix]
        if features is not None:
            self._features.append(features)
        self.turns.append((said, reply))
