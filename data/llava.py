"""LLaVA-style conversations: a JSON list, or JSONL, with images in files beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from vqrae.data._stream import BadSample, StreamDataset, StreamOptions
from vqrae.data.images import ImageError, open_image

IMAGE_MARK = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def read_records(path: str | Path) -> list[dict]:
    """The records of a .json list or a .jsonl file. Raises ValueError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no conversations file '{path}'; check the path")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            records = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"'{path}' is not JSON ({error}); write it anew") from None
    if not isinstance(records, list) or not records:
        raise ValueError(f"'{path}' is not a list of conversations; write it anew")
    return records


def is_pair(record: object) -> bool:
    """Whether a record is a picture with a text and not a conversation; see JsonlPairs."""
    if not isinstance(record, dict) or "conversations" in record:
        return False
    return "image" in record and "text" in record


class _Entries(list):
    """Only read, so that copies of a dataset share it: a large file has millions of objects."""

    def __deepcopy__(self, memo: dict) -> _Entries:
        return self


class LlavaDataset(StreamDataset):
    """Conversations, with or without images.

    Yields {"key": str, "images": [PIL RGB], "conversations": [{"role": "user" | "assistant",
    "content": str}]} and "question_types" where the record has them. `<image>` stays in the content
    as the image's place; in an answer it stands for one that is drawn.

    A record with an unreadable image or without proper turns is skipped, counted and named in the
    log; above `max_bad_share` it stops with ValueError. Records that JsonlPairs reads are passed
    over; a file with nothing else is a ValueError.

    Args:
        path: a .json list or .jsonl file.
        image_root: folder of the images; by default the file's own.
        seed: of the shuffling.
        shuffle: 0 keeps the file's order; anything else shuffles each epoch wholly.
        epochs: None for endless.
        rank, world_size: this process takes the samples whose position % world_size == rank.
        max_bad_share: the share of bad samples at which training stops.
    """

    _what = "conversation"

    def __init__(
        self,
        path: str | Path,
        *,
        image_root: str | Path | None = None,
        **options: Unpack[StreamOptions],
    ) -> None:
        super().__init__(
            str(path),
            **options,
        )
        records = read_records(path)
        self.entries = _Entries(record for record in records if self._kept(record))
        if not self.entries:
            raise ValueError(f"'{path}' has no {self._what}; write some")
        self.image_root = Path(image_root) if image_root is not None else Path(path).parent
        if not self.image_root.is_dir():
            raise ValueError(f"no image folder '{self.image_root}'; check image_root")

    @staticmethod
    def _kept(entry: object) -> bool:
        return not is_pair(entry)

    def __len__(self) -> int:
        """Records in one epoch, before ranks share them."""
        return len(self.entries)

    def _epoch(self, epoch: int) -> Iterator[tuple[int, dict]]:
        order = self._permuted(range(len(self.entries)), epoch)
        return ((index, self.entries[index]) for index in order)

    def _name(self, record: tuple[int, dict]) -> str:
        index, entry = record
        return str(entry.get("id", index) if isinstance(entry, dict) else index)

    def _decode(self, record: tuple[int, dict]) -> dict:
        _, entry = record
        if not isinstance(entry, dict):
            raise BadSample("it is not an object; mend it or remove it")
        turns = _turns(entry.get("conversations"))
        names = entry.get("image", [])
        names = [names] if isinstance(names, str) else list(names or [])
        marks = sum(turn["content"].count(IMAGE_MARK) for turn in turns)
        if marks != len(names):
            raise BadSample(f"it has {len(names)} images and {marks} '<image>' marks; mend it")
        try:
            images = [open_image(self.image_root / name) for name in names]
        except ImageError as error:
            raise BadSample(str(error)) from None
        sample = {"key": self._name(record), "images": images, "conversations": turns}
        if "question_types" in entry:
            sample["question_types"] = entry["question_types"]
        return sample


def _turns(conversation: object) -> list[dict]:
    """Turns as role and content, checked: user and assistant in turn, the answer last."""
    if not isinstance(conversation, list) or not conversation:
        raise BadSample("it has no conversations; mend it or remove it")
    turns = []
    for turn in conversation:
        if not isinstance(turn, dict):
            raise BadSample("a turn is not an object; mend it")
        role = _ROLES.get(turn.get("from", turn.get("role")))
        content = turn.get("value", turn.get("content"))
        if role is None or not isinstance(content, str) or not content.strip():
            raise BadSample("a turn lacks 'from' (human or gpt) or 'value'; mend it")
        turns.append({"role": role, "content": content})
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2) or len(roles) % 2:
        raise BadSample("its turns do not alternate human and gpt, ending in gpt; mend it")
    return turns
