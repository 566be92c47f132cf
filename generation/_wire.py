"""What goes over the wire: the part of OpenAI's formats that this server speaks."""

from __future__ import annotations

import base64
import io
import json
import time
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from vqrae.mllm.processing_unified import IMAGE_PLACE


class _Body(BaseModel):
    # Clients send more than we know of (user, store ...); what changes nothing is let through.
    model_config = ConfigDict(extra="ignore")


class ImageURL(_Body):
    url: str


class Part(_Body):
    """A piece of a message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageURL | None = None


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    images: list[Part] | None = None
    """What an assistant drew, as this server answers it: sent back, the model sees it."""


class StreamOptions(_Body):
    include_usage: bool = False


class ChatBody(_Body):
    """POST /v1/chat/completions."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    n: int = Field(default=1, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Ours: for what it draws in the conversation.
    guidance_scale: float | None = Field(default=None, ge=0)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ImagesBody(_Body):
    """POST /v1/images/generations."""

    model: str | None = None
    prompt: str
    n: int = Field(default=1, ge=1)
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    # Ours.
    seed: int | None = None
    guidance_scale: float | None = Field(default=None, ge=0)
    temperature: float = Field(default=1.0, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)


def read_messages(messages: list[Message]) -> tuple[list[dict[str, str]], list[str]]:
    """Messages as UnifiedProcessor.encode_chat takes them, and the URLs of their pictures in order.

    The model knows no system messages: what they say stands before the user's next text.

    Raises:
        ValueError: for a message without content, or with a text that names a picture's place.
    """
    turns: list[dict[str, str]] = []
    urls: list[str] = []
    before = ""
    for number, message in enumerate(messages):
        pieces = []
        content = message.content
        parts = [Part(type="text", text=content)] if isinstance(content, str) else content or []
        for part in [*parts, *(message.images or [])]:
            if part.type == "image_url":
                if part.image_url is None:
                    raise ValueError(f"messages[{number}] has an image_url part without image_url")
                urls.append(part.image_url.url)
                pieces.append(IMAGE_PLACE)
            else:
                text = part.text or ""
                if IMAGE_PLACE in text:
                    raise ValueError(
                        f"messages[{number}] has {IMAGE_PLACE!r} in its text; send pictures as "
                        "image_url parts"
                    )
                pieces.append(text)
        said = "\n".join(piece for piece in pieces if piece)
        if not said:
            raise ValueError(f"messages[{number}] is empty")
        if message.role in ("system", "developer"):
            if urls and IMAGE_PLACE in said:
                raise ValueError(f"messages[{number}] is a {message.role} message with a picture")
            before += said + "\n"
        else:
            if message.role == "user":
                said, before = before + said, ""
            turns.append({"role": message.role, "content": said})
    if not turns or turns[-1]["role"] != "user":
        raise ValueError("the last message must be the user's")
    return turns, urls


def png_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{png_base64(image)}"


def png_base64(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def event(data: dict[str, Any] | str) -> str:
    """A server-sent event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"


def completion(identity: str, model: str, choices: list[dict], usage: dict | None) -> dict:
    """The answer to a chat request that is not streamed."""
    return {
        "id": identity,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage,
    }


def chunk(identity: str, model: str, choices: list[dict], usage: dict | None = None) -> dict:
    """A piece of a streamed one."""
    return completion(identity, model, choices, usage) | {"object": "chat.completion.chunk"}


def usage(prompt: int, completed: int) -> dict[str, int]:
    """Tokens, a drawing's codes among them."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completed,
        "total_tokens": prompt + completed,
    }
