"""The server's numbers in Prometheus' form."""

from __future__ import annotations

import time

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vqrae.generation.service import Service

_PATHS = ("/v1/chat/completions", "/v1/images/generations", "/v1/models", "/health", "/metrics")
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ServerMetrics:
    """Counters of one server, in a registry of their own."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, service: Service):
        self._registry = registry = CollectorRegistry()

        def counter(name: str, about: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"vqrae_{name}", about, labels, registry=registry)

        self.requests = counter("requests", "Requests answered.", ("path", "status"))
        self.refused = counter("refused", "Requests refused because the queue was full.")
        self.written = counter("tokens", "Tokens given out in chats, drawn codes among them.")
        self.drawn = counter("pictures", "Pictures drawn.")
        self.seconds = Histogram(
            "vqrae_request_seconds",
            "Time to the answer, or to its beginning where it is streamed.",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        for name, about, read in (
            ("running", "Requests in the batch.", lambda: service.running),
            ("waiting", "Requests that wait.", lambda: service.waiting),
        ):
            Gauge(f"vqrae_{name}", about, registry=registry).set_function(read)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class CountRequests:
    """ASGI middleware: every request and its time, into the metrics."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Only known paths: strangers must not be able to make up labels.
        path = scope["path"] if scope["path"] in _PATHS else "other"
        start, status, seconds = time.perf_counter(), 500, None

        async def watched(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - start
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._metrics.requests.labels(path, status).inc()
            if seconds is not None:
                self._metrics.seconds.labels(path).observe(seconds)
