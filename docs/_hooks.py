"""The site also shows files from outside docs/ that its pages link to, README and CONTRIBUTING.

They stay where they are and are read from there, as project/PATH; links are turned accordingly.
mkdocs then checks those of README and CONTRIBUTING like any other's.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ALWAYS = ("README.md", "CONTRIBUTING.md")
_LINK = re.compile(r"(?<=\]\()[^)#\s:]+")


def on_config(config: MkDocsConfig) -> None:
    if not (ROOT / ".types" / "vqrae" / "tokenizer").exists():
        raise PluginError("the API's pages need links to the packages: run `make types` first")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    waiting = [ROOT / name for name in ALWAYS]
    waiting += [Path(file.abs_src_path) for file in files.documentation_pages()]
    seen = set(waiting)
    for path in waiting:
        if not path.is_relative_to(DOCS):
            name = _site_name(path)
            files.append(File.generated(config, name, abs_src_path=str(path)))
        if path.suffix != ".md":
            continue
        for link in _LINK.findall(path.read_text(encoding="utf-8")):
            target = _target(path, link)
            if target and not target.is_relative_to(DOCS) and target not in seen:
                seen.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = Path(page.file.abs_src_path)
    folder = os.path.dirname(page.file.src_uri)

    def turned(link: re.Match[str]) -> str:
        target = _target(source, link[0])
        return os.path.relpath(_site_name(target), folder or ".") if target else link[0]

    return _LINK.sub(turned, markdown)


def _target(source: Path, link: str) -> Path | None:
    """The project's file that a link names, or None."""
    path = (source.parent / link).resolve()
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def _site_name(path: Path) -> str:
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"project/{path.relative_to(ROOT).as_posix()}"
