"""`vqrae COMMAND ...`: looks a command up and runs it; imports nothing heavy before that."""

from __future__ import annotations

import sys

from vqrae.scripts._command import run_command, without_local_rank

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "train everything from scratch on the scenes world, then measure it"),
    "nano": ("nano", "train the model that ships with the package (hours)"),
    "data": ("data", "write data: `vqrae data scenes OUT`"),
    "train": ("train", "run a recipe: `vqrae train RECIPE --run DIR`; without a name, list them"),
    "plan": ("plan", "which ZeRO stage and micro-batch fit: `vqrae plan RECIPE --memory 80`"),
    "draw": ("text_to_image", 'draw: `vqrae draw "a red circle above a blue star" -o out.png`'),
    "chat": ("chat", 'ask about a picture: `vqrae chat scene.png "How many circles are there?"`'),
    "serve": ("serve", "serve the model behind OpenAI's API: `vqrae serve --port 8000`"),
    "web": ("web", "a page on which to chat, draw and look into the tokenizer"),
    "study": ("study", "run a grid of trainings: `vqrae study codebook --out DIR`"),
    "eval": ("evaluate", "measure reconstruction, VQA and text to image; write report.html"),
    "encode": ("encode", "turn a corpus of pictures into shards of codes, for training"),
    "reconstruct": ("reconstruct", "rFID, PSNR, SSIM, LPIPS of a tokenizer on any pictures"),
    "export": ("export", "the language model as a plain checkpoint; the encoder into an MLLM"),
    "doctor": ("doctor", "does everything that is needed work here, and what to do where not"),
}


def _usage() -> str:
    lines = ["usage: vqrae COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<11} {about}" for name, (_, about) in COMMANDS.items()]
    lines += ["", "`vqrae COMMAND --help` lists a command's options."]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted."""
    argv = without_local_rank(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"vqrae {version('vqrae')}\n")
        return 0
    if argv[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        sys.stderr.write(f"vqrae: there is no command {argv[0]!r}; choose one of {known}\n")
        return 2
    return run_command(COMMANDS[argv[0]][0], argv[1:], prog=f"vqrae {argv[0]}")


if __name__ == "__main__":
    sys.exit(main())
