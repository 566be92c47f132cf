"""One answer of a conversation: text, and a picture where the model begins to draw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from torch import Tensor
from vqrae.generation._server_jobs import Problem, WaitedJob
from vqrae.generation._streamed_text import StreamedText
from vqrae.generation._wire import ChatBody, png_url
from vqrae.generation.draw import picture_seed
from vqrae.generation.engine import DrawRequest, WriteRequest
from vqrae.generation.sampler import own_sampling
from vqrae.mllm import UnifiedModel, UnifiedProcessor


class Answer:
    """One choice of a chat request.

    Args:
        submit: takes the drawing that a text ended in, which has waited already.
        seed, most: of the text, and its longest length in tokens.
    """

    def __init__(
        self,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        submit: Callable[[WaitedJob], None],
        body: ChatBody,
        ids: list[int],
        pixels: Tensor | None,
        seed: int,
        most: int,
    ):
        self._model, self._processor, self._submit = model, processor, submit
        self._body, self._ids, self._seed = body, ids, seed
        self._text = StreamedText(processor.text, body.stops)
        self.job = WaitedJob(
            WriteRequest(
                ids=ids,
                seed=seed,
                max_new_tokens=most,
                temperature=body.temperature,
                top_p=body.top_p,
                allow_draw=True,
            ),
            pixels,
        )
        self.tokens = self.drawn = 0

    async def whole(self, index: int) -> dict[str, Any]:
        """A choice that is not streamed."""
        images, reason = [], "stop"
        async for delta, finished in self._pieces():
            images += delta.get("images", [])
            reason = finished or reason
        message = {"role": "assistant", "content": self._text.text, "refusal": None}
        if images:
            message["images"] = images
        return {"index": index, "message": message, "finish_reason": reason, "logprobs": None}

    async def pieces_to(self, queue: asyncio.Queue, index: int) -> None:
        """Deltas of a streamed choice, then how it ended; or what went wrong."""
        try:
            async for delta, finished in self._pieces():
                await queue.put(delta_of(index, delta, finished))
        except Exception as error:
            await queue.put(error)

    async def _pieces(self) -> AsyncIterator[tuple[dict, str | None]]:
        request = self.job.request
        while await self.job.news():
            piece = self._text.more(list(request.written))
            if piece:
                yield {"content": piece}, None
            if self._text.stopped:
                self.job.cancel()
        self.tokens = len(request.written)
        if request.stopped_by == "cancelled" and not self._text.stopped:
            raise Problem(503, "the server is stopping", "server_error")
        piece = self._text.more(request.written, last=True)
        if piece:
            yield {"content": piece}, None
        if request.stopped_by == "draw" and not self._text.stopped:
            yield {"images": [await self._drawing()]}, None
        limited = request.stopped_by == "length" and not self._text.stopped
        yield {}, "length" if limited else "stop"

    async def _drawing(self) -> dict[str, Any]:
        written = self.job.request
        guidance_scale, min_p = own_sampling(self._model, self._body.guidance_scale, None)
        said = self._body.messages[-1].content
        drawing = WaitedJob(
            DrawRequest(
                ids=[*self._ids, *written.written, self._processor.image_start_id],
                features=written.features,
                seed=picture_seed(str(said), self._seed),
                guidance_scale=guidance_scale,
                min_p=min_p,
            )
        )
        self._submit(drawing)
        self.job.inner = drawing
        await drawing.ended()
        self.tokens += len(drawing.request.written)
        self.drawn += 1
        return {"type": "image_url", "image_url": {"url": png_url(drawing.image)}}


def delta_of(index: int, delta: dict, finished: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finished, "logprobs": None}
