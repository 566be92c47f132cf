"""OpenAI-compatible server: chat about pictures, drawing, models, health, metrics.

    POST /v1/chat/completions      text and pictures in; text, and drawings as message.images, out
    POST /v1/images/generations    pictures of a prompt as base64 PNG
    GET  /v1/models                the one model
    GET  /health, /metrics         open to all

A drawing in a conversation comes as message.images (delta.images where it is streamed), a list of
image_url parts with data URLs; sent back in the next request, the model looks at it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from vqrae.generation._pictures_in import PictureLimits, read_picture
from vqrae.generation._server_limits import LimitBody
from vqrae.generation._server_metrics import CountRequests, ServerMetrics
from vqrae.generation._streamed_text import StreamedText
from vqrae.generation._wire import (
    ChatBody,
    ImagesBody,
    chunk,
    completion,
    error_body,
    event,
    png_base64,
    png_url,
    read_messages,
    usage,
)
from vqrae.generation.draw import picture_seed
from vqrae.generation.engine import DrawRequest, WriteRequest
from vqrae.generation.sampler import own_sampling
from vqrae.generation.service import Job, QueueFull, Service
from vqrae.mllm import UnifiedModel, UnifiedProcessor


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What the server takes and gives."""

    name: str = "vqrae"
    """What clients call the model."""
    api_key: str | None = None
    """Where it is set, /v1 asks for `Authorization: Bearer KEY`."""
    rows: int = 16
    """Most rows in a batch; a guided drawing takes two."""
    queue: int = 64
    """Requests that may wait; a further one is answered with 429."""
    seconds: float = 120.0
    """A request that takes longer is cancelled and answered with 504."""
    max_choices: int = 8
    """Most answers or pictures of one request."""
    max_pictures: int = 8
    """Most pictures in one conversation."""
    max_body: int = 32_000_000
    """Bytes of a request."""
    pictures: PictureLimits = field(default_factory=PictureLimits)


class _Problem(Exception):
    """An answer that is an error in OpenAI's form."""

    def __init__(self, status: int, message: str, kind: str, code: str | None = None):
        super().__init__(message)
        self.status, self.body = status, error_body(message, kind, code)


def build_app(
    model: UnifiedModel, processor: UnifiedProcessor, options: ServerOptions | None = None
) -> FastAPI:
    """The server as an ASGI application; the model works while the application is up."""
    options = options or ServerOptions()
    service = Service(model, processor, rows=options.rows, queue=options.queue)
    metrics = ServerMetrics(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with service:
            yield

    app = FastAPI(title="vqrae", lifespan=lifespan)
    app.add_middleware(LimitBody, most=options.max_body)
    app.add_middleware(CountRequests, metrics=metrics)
    _answer_errors(app)
    guarded = [Depends(_key_check(options.api_key))]
    handlers = _Handlers(service, options, metrics)
    app.post("/v1/chat/completions", dependencies=guarded, response_model=None)(handlers.chat)
    app.post("/v1/images/generations", dependencies=guarded, response_model=None)(handlers.images)
    started = int(time.time())
    card = {"id": options.name, "object": "model", "created": started, "owned_by": "vqrae"}

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name}", dependencies=guarded)
    async def one_model(name: str) -> dict:
        handlers.check_model(name)
        return card

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", "running": service.running, "waiting": service.waiting}

    @app.get("/metrics")
    async def numbers() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type=metrics.media_type)

    return app


def _key_check(key: str | None) -> Callable[[Request], None]:
    async def check(request: Request) -> None:
        if key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not secrets.compare_digest(given.encode(), key.encode()):
            raise _Problem(
                401, "wrong or missing API key", "invalid_request_error", "invalid_api_key"
            )

    return check


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(_Problem)
    async def problem(_: Request, error: _Problem) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 429 else None
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"] if each != "body")
        message = f"{place}: {first['msg']}" if place else str(first["msg"])
        return JSONResponse(error_body(message, "invalid_request_error"), 400)

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        body = error_body(str(error.detail), "invalid_request_error")
        return JSONResponse(body, error.status_code)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body("the server failed; see its log", "server_error"), 500)


class _Handlers:
    def __init__(self, service: Service, options: ServerOptions, metrics: ServerMetrics):
        self.service, self.options, self.metrics = service, options, metrics
        self.model, self.processor = service.model, service.processor

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.options.name):
            raise _Problem(
                404,
                f"there is no model {name!r} here; this server has {self.options.name!r}",
                "invalid_request_error",
                "model_not_found",
            )

    def check_number(self, n: int) -> None:
        if n > self.options.max_choices:
            raise _bad(f"n is {n}, more than the limit of {self.options.max_choices}")

    # -- drawing -----------------------------------------------------------------------------

    async def images(self, body: ImagesBody, http: Request) -> JSONResponse:
        self.check_model(body.model)
        self.check_number(body.n)
        side = self.processor.image_processor.image_size
        if body.size not in (None, "auto", f"{side}x{side}"):
            raise _bad(f"size is {body.size!r}, but this model draws {side}x{side} (or auto)")
        if body.response_format == "url":
            raise _bad("response_format url is not supported; take b64_json")
        try:
            ids = self.processor.encode_draw(body.prompt)
        except ValueError as error:
            raise _bad(str(error)) from None
        guidance_scale, min_p = own_sampling(self.model, body.guidance_scale, body.min_p)
        seed = _seed(body.seed)
        jobs = [
            _Waited(
                DrawRequest(
                    ids=ids,
                    seed=picture_seed(body.prompt, seed + number),
                    guidance_scale=guidance_scale,
                    min_p=min_p,
                    temperature=body.temperature,
                    top_k=body.top_k,
                    top_p=body.top_p,
                )
            )
            for number in range(body.n)
        ]
        async with self._running(jobs, http):
            for job in jobs:
                await job.ended()
        pictures = [{"b64_json": png_base64(job.image)} for job in jobs]
        self.metrics.drawn.inc(len(pictures))
        return JSONResponse(
            {"created": int(time.time()), "data": pictures, "seed": seed, "output_format": "png"}
        )

    # -- talking -----------------------------------------------------------------------------

    async def chat(self, body: ChatBody, http: Request) -> JSONResponse | StreamingResponse:
        self.check_model(body.model)
        self.check_number(body.n)
        try:
            turns, urls = read_messages(body.messages)
            if len(urls) > self.options.max_pictures:
                raise ValueError(
                    f"{len(urls)} pictures in one conversation are more than the limit of "
                    f"{self.options.max_pictures}"
                )
            pixels = await asyncio.to_thread(self._pixels, urls)
            ids = self.processor.encode_chat(turns, len(urls))
        except ValueError as error:
            raise _bad(str(error)) from None
        room = self.processor.max_length - len(ids)
        most = body.max_completion_tokens or body.max_tokens or room
        seed = _seed(body.seed)
        answers = [
            _Answer(self, body, ids, pixels, seed + number, max(1, min(most, room)))
            for number in range(body.n)
        ]
        identity = f"chatcmpl-{secrets.token_hex(12)}"
        if body.stream:
            return await self._stream(answers, body, identity, http, len(ids))
        async with self._running([answer.job for answer in answers], http):
            choices = [await answer.whole(i) for i, answer in enumerate(answers)]
        self.metrics.written.inc(sum(answer.tokens for answer in answers))
        tokens = usage(len(ids), sum(answer.tokens for answer in answers))
        return JSONResponse(completion(identity, self.options.name, choices, tokens))

    def _pixels(self, urls: Sequence[str]):
        if not urls:
            return None
        return self.processor.pixels([read_picture(url, self.options.pictures) for url in urls])

    async def _stream(
        self, answers: list[_Answer], body: ChatBody, identity: str, http: Request, prompt: int
    ) -> StreamingResponse:
        running = self._running([answer.job for answer in answers], http)
        # Entered before the answer begins, so that a full queue is still an answer of its own.
        await running.__aenter__()

        async def events() -> AsyncIterator[str]:
            name = self.options.name
            try:
                pieces = asyncio.Queue()
                tasks = [
                    asyncio.create_task(answer.pieces_to(pieces, index))
                    for index, answer in enumerate(answers)
                ]
                for index in range(len(answers)):
                    first = {"role": "assistant", "content": ""}
                    yield event(chunk(identity, name, [_delta(index, first)]))
                left = len(answers)
                while left:
                    piece = await pieces.get()
                    if isinstance(piece, BaseException):
                        raise piece
                    left -= piece["finish_reason"] is not None
                    yield event(chunk(identity, name, [piece]))
                await asyncio.gather(*tasks)
                tokens = sum(answer.tokens for answer in answers)
                self.metrics.written.inc(tokens)
                if body.stream_options and body.stream_options.include_usage:
                    yield event(chunk(identity, name, [], usage(prompt, tokens)))
                yield event("[DONE]")
            except _Problem as error:
                yield event(error.body)
            finally:
                with suppress(_Problem):
                    await running.__aexit__(None, None, None)

        return StreamingResponse(events(), media_type="text/event-stream")

    @asynccontextmanager
    async def _running(self, jobs: list[_Waited], http: Request) -> AsyncIterator[None]:
        """Submit jobs; cancel them when the client goes, time is up, or the block is left."""
        self.submit(jobs)

        async def until_gone() -> None:
            while not await http.is_disconnected():
                await asyncio.sleep(0.25)
            for job in jobs:
                job.give_up(_Problem(499, "the client has gone", "invalid_request_error"))

        def too_late() -> None:
            limit = self.options.seconds
            for job in jobs:
                job.give_up(
                    _Problem(504, f"the request took longer than {limit} seconds", "timeout")
                )

        clock = asyncio.get_running_loop().call_later(self.options.seconds, too_late)
        watcher = asyncio.create_task(until_gone())
        try:
            yield
        finally:
            clock.cancel()
            watcher.cancel()
            for job in jobs:
                job.cancel()

    def submit(self, jobs: list[_Waited], *, begun: bool = False) -> None:
        try:
            self.service.submit(*(job.job for job in jobs), begun=begun)
        except QueueFull as error:
            self.metrics.refused.inc()
            raise _Problem(429, str(error), "rate_limit_error", "queue_full") from None
        except ValueError as error:
            raise _bad(str(error)) from None


class _Waited:
    """A job as the event loop sees it."""

    def __init__(self, request: WriteRequest | DrawRequest, pixels: Any = None):
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._over = False
        self._problem: _Problem | None = None
        self.job = Job(request=request, pixels=pixels, on_token=self._tell, on_end=self._end)
        self.request = request
        self.inner: _Waited | None = None
        """What goes on in its place: the drawing that a text ended in."""

    @property
    def image(self):
        return self.job.image

    def cancel(self) -> None:
        self.request.cancel()
        if self.inner is not None:
            self.inner.cancel()

    def give_up(self, problem: _Problem) -> None:
        """End waiting with this problem."""
        if self.inner is not None:
            self.inner.give_up(problem)
        elif not self._over:
            self._problem = problem
            self.cancel()
            self._news.set()

    async def news(self) -> bool:
        """Wait for the next tokens; False once it is over. Raises _Problem where it failed."""
        await self._news.wait()
        if self._problem is not None:
            raise self._problem
        if self.job.error is not None:
            raise _Problem(500, "the server failed; see its log", "server_error")
        if self._over:
            return False
        self._news.clear()
        return True

    async def ended(self) -> None:
        while await self.news():
            pass
        if self.request.stopped_by == "cancelled":
            raise _Problem(503, "the server is stopping", "server_error")

    # From the service's thread.

    def _tell(self, _: Job) -> None:
        self._call(self._news.set)

    def _end(self, _: Job) -> None:
        def over() -> None:
            self._over = True
            self._news.set()

        self._call(over)

    def _call(self, what: Callable[[], None]) -> None:
        # The loop may be gone already when the server stops.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what)


class _Answer:
    """One choice of a chat request: text, and a picture where the model begins to draw."""

    def __init__(
        self, handlers: _Handlers, body: ChatBody, ids: list[int], pixels, seed: int, most: int
    ):
        self._handlers, self._body, self._ids, self._seed = handlers, body, ids, seed
        self._text = StreamedText(handlers.processor.text, body.stops)
        self.job = _Waited(
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
        self.tokens = 0

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
                await queue.put(_delta(index, delta, finished))
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
            raise _Problem(503, "the server is stopping", "server_error")
        piece = self._text.more(request.written, last=True)
        if piece:
            yield {"content": piece}, None
        if request.stopped_by == "draw" and not self._text.stopped:
            yield {"images": [await self._drawing()]}, None
        limited = request.stopped_by == "length" and not self._text.stopped
        yield {}, "length" if limited else "stop"

    async def _drawing(self) -> dict[str, Any]:
        handlers, written = self._handlers, self.job.request
        model, processor = handlers.model, handlers.processor
        guidance_scale, min_p = own_sampling(model, self._body.guidance_scale, None)
        said = self._body.messages[-1].content
        drawing = _Waited(
            DrawRequest(
                ids=[*self._ids, *written.written, processor.image_start_id],
                features=written.features,
                seed=picture_seed(str(said), self._seed),
                guidance_scale=guidance_scale,
                min_p=min_p,
            )
        )
        # It has waited already: a full queue does not stop it.
        handlers.submit([drawing], begun=True)
        self.job.inner = drawing
        await drawing.ended()
        self.tokens += len(drawing.request.written)
        handlers.metrics.drawn.inc()
        return {"type": "image_url", "image_url": {"url": png_url(drawing.image)}}


def _delta(index: int, delta: dict, finished: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finished, "logprobs": None}


def _bad(message: str) -> _Problem:
    return _Problem(400, message, "invalid_request_error")


def _seed(given: int | None) -> int:
    return secrets.randbelow(2**31) if given is None else given % 2**62


__all__ = ["ServerOptions", "build_app"]
