"""`vqrae serve --port 8000`: the model behind OpenAI's API."""

from __future__ import annotations

import os
from dataclasses import dataclass

import tyro
from vqrae.scripts._model import Loading


@dataclass(frozen=True, kw_only=True)
class Serve(Loading):
    """Serve the model: /v1/chat/completions, /v1/images/generations, /v1/models."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is reached from other machines."""
    port: int = 8000
    """Port to listen at."""
    name: str = "vqrae"
    """What clients call the model."""
    api_key: str | None = None
    """Key that clients must give; by default $VQRAE_API_KEY, and without it none."""
    rows: int = 16
    """Most rows in a batch; a guided drawing takes two."""
    queue: int = 64
    """Requests that may wait; a further one is answered with 429."""
    seconds: float = 120.0
    """Longest time of a request."""
    max_body: int = 32_000_000
    """Largest request, in bytes."""
    max_pixels: int = 16_000_000
    """Largest picture, in pixels."""
    allow_remote_images: bool = False
    """Fetch pictures from http and https addresses of public hosts."""


def main(argv: list[str], prog: str = "vqrae serve") -> None:
    config = tyro.cli(Serve, args=argv, prog=prog)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed; run: pip install 'vqrae[serve]'"
        ) from None
    from vqrae.generation._pictures_in import PictureLimits
    from vqrae.generation.server import ServerOptions, build_app

    model, processor = config.load()
    app = build_app(
        model,
        processor,
        ServerOptions(
            name=config.name,
            api_key=config.api_key or os.environ.get("VQRAE_API_KEY"),
            rows=config.rows,
            queue=config.queue,
            seconds=config.seconds,
            max_body=config.max_body,
            pictures=PictureLimits(
                max_pixels=config.max_pixels, allow_remote=config.allow_remote_images
            ),
        ),
    )
    uvicorn.run(app, host=config.host, port=config.port, log_level="info")
