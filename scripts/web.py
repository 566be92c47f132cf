"""`vqrae web`: a page on which to chat, draw, and look into the tokenizer."""

from __future__ import annotations

import os
from dataclasses import dataclass

import tyro
from vqrae.scripts._model import Loading


@dataclass(frozen=True, kw_only=True)
class Web(Loading):
    """A page on which to chat, draw, and look into the tokenizer."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is reached from other machines."""
    port: int = 7860
    """Port to listen at."""


def main(argv: list[str], prog: str = "vqrae web") -> None:
    config = tyro.cli(Web, args=argv, prog=prog)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("gradio is not installed; run: pip install 'vqrae[web]'") from None
    from vqrae.generation.web import THEME, build_page

    page = build_page(*config.load())
    page.launch(server_name=config.host, server_port=config.port, theme=THEME)
