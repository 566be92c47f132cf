"""A request of the service as the server's event loop sees it, and what can go wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from vqrae.generation._wire import error_body
from vqrae.generation.engine import DrawRequest, WriteRequest
from vqrae.generation.service import Job


class Problem(Exception):
    """An answer that is an error in OpenAI's form."""

    def __init__(self, status: int, message: str, kind: str, code: str | None = None):
        super().__init__(message)
        self.status, self.body = status, error_body(message, kind, code)


def bad_request(message: str) -> Problem:
    return Problem(400, message, "invalid_request_error")


class WaitedJob:
    """A job as the event loop sees it."""

    def __init__(self, request: WriteRequest | DrawRequest, pixels: Any = None):
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._over = False
        self._problem: Problem | None = None
        self.job = Job(request=request, pixels=pixels, on_token=self._tell, on_end=self._end)
        self.request = request
        self.inner: WaitedJob | None = None
        """What goes on in its place: the drawing that a text ended in."""

    @property
    def image(self):
        return self.job.image

    def cancel(self) -> None:
        self.request.cancel()
        if self.inner is not None:
            self.inner.cancel()

    def give_up(self, problem: Problem) -> None:
        """End waiting with this problem."""
        if self.inner is not None:
            self.inner.give_up(problem)
        elif not self._over:
            self._problem = problem
            self.cancel()
            self._news.set()

    async def news(self) -> bool:
        """Wait for the next tokens; False once it is over. Raises Problem where it failed."""
        await self._news.wait()
        if self._problem is not None:
            raise self._problem
        if self.job.error is not None:
            raise Problem(500, "the server failed; see its log", "server_error")
        if self._over:
            return False
        self._news.clear()
        return True

    async def ended(self) -> None:
        while await self.news():
            pass
        if self.request.stopped_by == "cancelled":
            raise Problem(503, "the server is stopping", "server_error")

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
