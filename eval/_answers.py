"""What judges said, kept line by line: a killed evaluation asks nothing twice."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any


class Answers:
    """Answers by a key of everything that decides them; each rank writes a file of its own.

    Args:
        folder: made where it is missing; the files of all ranks in it are read.
        rank: whose file new answers go to.
    """

    def __init__(self, folder: str | Path, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, Any] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            self._read(path)
        path = self.folder / f"{rank:04d}.jsonl"
        torn = path.is_file() and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        if torn and path.stat().st_size:
            self._file.write("\n")

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill: it is asked again

    def get(self, key: str) -> Any:
        """The answer, None where there is none."""
        return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep an answer; it survives a kill from here on."""
        with self._lock:
            self._known[key] = value
            self._file.write(json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def key_of(*parts: Any) -> str:
    """One key of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
