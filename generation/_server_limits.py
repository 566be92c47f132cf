"""Requests larger than a limit are refused before they are held in memory."""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vqrae.generation._wire import error_body


class LimitBody:
    """ASGI middleware: 413 for a body of more than `most` bytes, whatever its headers say."""

    def __init__(self, app: ASGIApp, most: int):
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            await self._refuse(send)
            return
        read, state = 0, "fits"

        async def counted() -> Message:
            nonlocal read, state
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._most:
                    state = "too large"
                    # The application shall not wait for the rest; what it answers is not sent.
                    return {"type": "http.request", "body": b"", "more_body": False}
            return message

        async def watched(message: Message) -> None:
            nonlocal state
            if state == "too large":
                state = "refused"
                await self._refuse(send)
            elif state == "fits":
                await send(message)

        await self._app(scope, counted, watched)

    async def _refuse(self, send: Send) -> None:
        message = f"the request is larger than {self._most} bytes"
        body = json.dumps(error_body(message, "invalid_request_error")).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})
