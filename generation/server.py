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

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from vqrae.generation._pictures_in import PictureLimits, read_picture
from vqrae.generation._server_answers import Answer, delta_of
from vqrae.generation._server_jobs import Problem, WaitedJob, bad_request
from vqrae.generation._server_limits import LimitBody
from vqrae.generation._server_metrics import CountRequests, ServerMetrics
from vqrae.generation._wire import (
    ChatBody,
    ImagesBody,
    chunk,
    completion,
    error_body,
    event,
    png_base64,
    read_messages,
    usage,
)
from vqrae.generation.draw import picture_seed
from vqrae.generation.engine import DrawRequest
from vqrae.generation.sampler import own_sampling
from vqrae.generation.service import QueueFull, Service
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
            raise Problem(
                401, "wrong or missing API key", "invalid_request_error", "invalid_api_key"
            )

    return check


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> JSONResponse:
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
            raise Problem(
                404,
                f"there is no model {name!r} here; this server has {self.options.name!r}",
                "invalid_request_error",
                "model_not_found",
            )

    def check_number(self, n: int) -> None:
        if n > self.options.max_choices:
            raise bad_request(f"n is {n}, more than the limit of {self.options.max_choices}")

    # -- drawing -----------------------------------------------------------------------------

    async def images(self, body: ImagesBody, http: Request) -> JSONResponse:
        self.check_model(body.model)
        self.check_number(body.n)
        side = self.processor.image_processor.image_size
        if body.size not in (None, "auto", f"{side}x{side}"):
            raise bad_request(
                f"size is {body.size!r}, but this model draws {side}x{side} (or auto)"
            )
        if body.response_format == "url":
            raise bad_request("response_format url is not supported; take b64_json")
        try:
            ids = self.processor.encode_draw(body.prompt)
        except ValueError as error:
            raise bad_request(str(error)) from None
        guidance_scale, min_p = own_sampling(self.model, body.guidance_scale, body.min_p)
        seed = _seed(body.seed)
        jobs = [
            WaitedJob(
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
            raise bad_request(str(error)) from None
        room = self.processor.max_length - len(ids)
        most = body.max_completion_tokens or body.max_tokens or room
        seed = _seed(body.seed)
        answers = [
            Answer(
                self.model,
                self.processor,
                lambda drawing: self.submit([drawing], begun=True),
                body,
                ids,
                pixels,
                seed + number,
                max(1, min(most, room)),
            )
            for number in range(body.n)
        ]
        identity = f"chatcmpl-{secrets.token_hex(12)}"
        if body.stream:
            return await self._stream(answers, body, identity, http, len(ids))
        async with self._running([answer.job for answer in answers], http):
            choices = [await answer.whole(i) for i, answer in enumerate(answers)]
        tokens = usage(len(ids), self._counted(answers))
        return JSONResponse(completion(identity, self.options.name, choices, tokens))

    def _counted(self, answers: list[Answer]) -> int:
        """Tokens of all answers, which go into the metrics with the pictures."""
        tokens = sum(answer.tokens for answer in answers)
        self.metrics.written.inc(tokens)
        self.metrics.drawn.inc(sum(answer.drawn for answer in answers))
        return tokens

    def _pixels(self, urls: Sequence[str]):
        if not urls:
            return None
        return self.processor.pixels([read_picture(url, self.options.pictures) for url in urls])

    async def _stream(
        self, answers: list[Answer], body: ChatBody, identity: str, http: Request, prompt: int
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
                    yield event(chunk(identity, name, [delta_of(index, first)]))
                left = len(answers)
                while left:
                    piece = await pieces.get()
                    if isinstance(piece, BaseException):
                        raise piece
                    left -= piece["finish_reason"] is not None
                    yield event(chunk(identity, name, [piece]))
                await asyncio.gather(*tasks)
                tokens = self._counted(answers)
                if body.stream_options and body.stream_options.include_usage:
                    yield event(chunk(identity, name, [], usage(prompt, tokens)))
                yield event("[DONE]")
            except Problem as error:
                yield event(error.body)
            finally:
                with suppress(Problem):
                    await running.__aexit__(None, None, None)

        return StreamingResponse(events(), media_type="text/event-stream")

    @asynccontextmanager
    async def _running(self, jobs: list[WaitedJob], http: Request) -> AsyncIterator[None]:
        """Submit jobs; cancel them when the client goes, time is up, or the block is left."""
        self.submit(jobs)

        async def until_gone() -> None:
            while not await http.is_disconnected():
                await asyncio.sleep(0.25)
            for job in jobs:
                job.give_up(Problem(499, "the client has gone", "invalid_request_error"))

        def too_late() -> None:
            limit = self.options.seconds
            for job in jobs:
                job.give_up(
                    Problem(504, f"the request took longer than {limit} seconds", "timeout")
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

    def submit(self, jobs: list[WaitedJob], *, begun: bool = False) -> None:
        try:
            self.service.submit(*(job.job for job in jobs), begun=begun)
        except QueueFull as error:
            self.metrics.refused.inc()
            raise Problem(429, str(error), "rate_limit_error", "queue_full") from None
        except ValueError as error:
            raise bad_request(str(error)) from None


def _seed(given: int | None) -> int:
    return secrets.randbelow(2**31) if given is None else given % 2**62


__all__ = ["ServerOptions", "build_app"]
