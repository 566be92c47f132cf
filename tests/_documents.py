"""Fenced blocks of a Markdown page, the command lines in them, and links of built pages."""

import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def command_lines(text: str) -> list[list[str]]:
    """The words of every line of bash blocks, continued lines joined, comments left out."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and "stylesheet" in given.get("rel", "") or "preconnect" in given.values():
            self.loaded.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in given:
            self.loaded.append(given["src"])


def broken_links(site: Path) -> list[str]:
    """'PAGE: LINK' where a link or a loaded file of a built site leads nowhere within it, and where
    something is loaded from elsewhere. Links to elsewhere are not followed."""
    pages = {path: _Page(path.read_text()) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are meant for a server's root
            continue
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                wrong = link in page.loaded and parts.scheme != "data"
            else:
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                target = target / "index.html" if target.is_dir() else target
                known = pages[target].places if target in pages else {"", parts.fragment}
                wrong = not target.is_file() or unquote(parts.fragment) not in known
            if wrong:
                found.append(f"{path.relative_to(site)}: {link}")
    for sheet in site.rglob("*.css"):
        found += [f"{sheet.name}: {link}" for link in _fetched(sheet.read_text())]
    return found


def _fetched(css: str) -> list[str]:
    """Addresses elsewhere that a style sheet would load."""
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    return re.findall(r"(?:@import\s+|url\()[\"']?((?:https?:)?//[^\"')]+)", css)
