"""Plain text that is on every machine with this project: paragraphs of the docstrings of Python's
library, numpy and scipy to train on; this project's CONTRIBUTING.md and scikit-learn's account of
its data sets are held out."""

from __future__ import annotations

import ast
import json
import re
import sysconfig
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_PROSE = re.compile(r"[A-Z][^|<>#*=_\[\]{}\\]{200,}")
# Characters of a paragraph's beginning that are given, and of the rest that is learnt.
_ASKED, _ANSWERED = 100, 250


def held_out_texts() -> dict[str, str]:
    """None of it is in `paragraphs`."""
    stories = sorted((_folder("sklearn") / "datasets" / "descr").glob("*.rst"))
    return {
        "project": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "data_sets": "\n".join(story.read_text(encoding="utf-8") for story in stories),
    }


def paragraphs() -> list[str]:
    """Paragraphs of prose, each once, in a fixed order."""
    files = list(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    files += [*_folder("numpy").rglob("*.py"), *_folder("scipy").rglob("*.py")]
    found = set()
    for file in files:
        if "tests" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            for block in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                block = " ".join(block.split())
                if _PROSE.fullmatch(block):
                    found.add(block)
    return sorted(found)


def write_continuations(path: Path) -> Path:
    """Conversations without pictures: a paragraph's beginning is given, the answer goes on.
    Nothing is done where `path` is there."""
    if path.exists():
        return path
    records = []
    for number, paragraph in enumerate(paragraphs()):
        cut = paragraph.index(" ", _ASKED)
        end = paragraph.rfind(" ", 0, cut + _ANSWERED)
        asked, answered = paragraph[:cut], paragraph[cut + 1 : end]
        turns = [("human", f"Go on with this text: {asked}"), ("gpt", answered)]
        conversation = [{"from": who, "value": text} for who, text in turns]
        records.append({"id": f"text-{number}", "conversations": conversation})
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def _folder(package: str) -> Path:
    return Path(find_spec(package).submodule_search_locations[0])
