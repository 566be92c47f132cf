"""`vqrae data scenes OUT`: write the scenes world in the formats that real data uses."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated

import tyro

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Write scenes as WebDataset shards, LLaVA-style JSON and GenEval prompts."""

    out: tyro.conf.Positional[str]
    """Folder to write; it must not hold other data."""
    train: int = 8000
    """Training pictures."""
    test: int = 2000
    """Test pictures, each with a combination that training never shows."""
    seed: int = 0
    """Seed of everything drawn."""


def main(argv: list[str], prog: str = "vqrae data") -> None:
    # A dict keeps `scenes` a subcommand, so that other worlds can stand beside it.
    commands = {"scenes": _scenes, "easy-vqa": _easy_vqa, "check": _check}
    tyro.extras.subcommand_cli_from_dict(commands, args=argv or ["--help"], prog=prog)


def _scenes(config: Annotated[Scenes, tyro.conf.arg(name="")]) -> None:
    """Write the scenes world: 64x64 pictures, captions, questions, prompts."""
    from vqrae.data import write_scenes

    path = write_scenes(config.out, train=config.train, test=config.test, seed=config.seed)
    logger.info("%s: %d training and %d test pictures", path, config.train, config.test)


def _easy_vqa(out: tyro.conf.Positional[str]) -> None:
    """Write the questions and pictures of the installed package easy-vqa.

    Args:
        out: folder to write; it must not hold other data.
    """
    from vqrae.data.easy_vqa import write_easy_vqa

    logger.info("%s", write_easy_vqa(out))


def _check(shards: tyro.conf.Positional[str]) -> None:
    """Read every sample of WebDataset shards once and count the bad ones.

    Args:
        shards: a folder, glob or brace pattern of tar files.
    """
    from vqrae.data import ShardDataset

    dataset = ShardDataset(shards, seed=0, shuffle=0, epochs=1, max_bad_share=1.0)
    good = sum(1 for _ in dataset)
    logger.info("%s: %d good samples", shards, good)
