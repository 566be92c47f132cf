"""`vqrae chat scene.png "How many circles are there?"`, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tyro
from vqrae.scripts._model import Loading

HELP = """\
Type a question, or ask for a drawing ("draw a red circle"), then ask about it.
  /image FILE    show the model a picture with the next message
  /draw PROMPT   draw, whatever the model would have said
  /reset         forget the conversation
  /quit          leave (also Ctrl-D)
"""


@dataclass(frozen=True, kw_only=True)
class Chat(Loading):
    """Ask about a picture, or talk: without a question the conversation is interactive."""

    image: tyro.conf.Positional[str | None] = None
    """Picture to ask about; a question alone is also taken here."""
    question: tyro.conf.Positional[str | None] = None
    """One question; its answer is printed and the command ends."""
    drawings: str = "."
    """Folder for what the model draws: drawing-1.png, drawing-2.png ..."""
    temperature: float = 0.0
    """Sampling temperature of answers; 0 takes the most likely word."""
    guidance_scale: float | None = None
    """Guidance of drawings; by default the model's own."""
    seed: int = 0
    """Seed of what is sampled."""


def main(argv: list[str], prog: str = "vqrae chat") -> None:
    config = tyro.cli(Chat, args=argv, prog=prog)
    image, question = config.image, config.question
    if question is None and image is not None and _reads_as_text(image):
        image, question = None, image
    if question is not None and not question.strip():
        raise ValueError("the question is empty; write what to ask")
    from vqrae.data import open_image

    pictures = [] if image is None else [open_image(image)]
    model, processor = config.load()
    from vqrae.generation import ChatSession

    session = ChatSession(
        model,
        processor,
        text_temperature=config.temperature,
        guidance_scale=config.guidance_scale,
        seed=config.seed,
    )
    talk = _Talk(session, pictures, Path(config.drawings))
    if question is not None:
        talk.say(question)
    else:
        talk.run(sys.stdin, prompt=sys.stdin.isatty())


def _reads_as_text(argument: str) -> bool:
    """A lone argument with spaces that names no file is a question, not a misspelt file."""
    return " " in argument.strip() and not Path(argument).suffix and not Path(argument).exists()


class _Talk:
    """The interactive loop: lines in, replies out, drawings to files."""

    def __init__(self, session, pictures: list, folder: Path):
        self.session, self.pictures, self.folder = session, pictures, folder
        session.on_text = self._write

    def run(self, lines: Iterable[str], prompt: bool) -> None:
        """Until /quit or the end of the lines; a mistake is told and the talk goes on."""
        self._write(HELP if prompt else "")
        if self.pictures and prompt:
            self._write("The picture goes with your first message.\n")
        self._prompt(prompt)
        for line in lines:
            if line.strip() in ("/quit", "/exit"):
                return
            try:
                self.line(line.strip())
            except ValueError as error:
                self._write(f"! {error}\n")
            self._prompt(prompt)
        self._write("\n" if prompt else "")

    def line(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if not line:
            return
        if command == "/image":
            from vqrae.data import open_image

            self.pictures = [open_image(rest.strip())]
        elif command == "/draw":
            self._show(self.session.draw(rest))
        elif command == "/reset":
            self.session.reset()
            self.pictures = []
        elif command in ("/help", "/?"):
            self._write(HELP)
        elif command.startswith("/"):
            raise ValueError(f"there is no command {command!r}; /help lists them")
        else:
            self.say(line)

    def say(self, text: str) -> None:
        reply = self.session.say(text, self.pictures)
        self.pictures = []
        self._show(reply)

    def _show(self, reply) -> None:
        if reply.text:
            self._write("\n")  # the words are there already, written as they came
        elif not reply.images:
            # A model of a short training may end its answer before the first word: say so.
            self._write("[no answer]\n")
        first = len(self.session.drawings) - len(reply.images) + 1
        for number, picture in enumerate(reply.images, first):
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"drawing-{number}.png"
            picture.save(path)
            self._write(f"[drew {path}]\n")

    def _prompt(self, wanted: bool) -> None:
        if wanted:
            self._write("> ")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
