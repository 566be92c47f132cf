"""WebDataset shards: tar files of KEY.png, KEY.txt and KEY.json members."""

from __future__ import annotations

import glob
import json
import logging
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Unpack

from vqrae.data._pairs import IMAGE_ENDINGS, pair
from vqrae.data._stream import BadSample, StreamDataset, StreamOptions

logger = logging.getLogger(__name__)

_TEXTS = ("txt", "caption", "text")


def expand_shards(urls: str | Path | Iterable[str | Path]) -> list[str]:
    """Local tar files named by a folder, a glob, a brace pattern ("a-{000..007}.tar"), a .txt file
    with one of these in each line, or a list of all that.

    Raises ValueError where a file does not exist.
    """
    from webdataset.shardlists import expand_urls

    shards: list[str] = []
    for url in [urls] if isinstance(urls, (str, Path)) else list(urls):
        text = str(url)
        if text.endswith(".txt") and Path(text).is_file():
            lines = Path(text).read_text(encoding="utf-8").split("\n")
            found = expand_shards([line.strip() for line in lines if line.strip()])
        elif Path(text).is_dir():
            found = sorted(str(path) for path in Path(text).glob("*.tar"))
        elif Path(text).is_file():
            found = [text]
        elif glob.has_magic(text):
            found = sorted(glob.glob(text))
        else:
            found = expand_urls(text)
        missing = [path for path in found if not Path(path).is_file()]
        if missing or not found:
            raise ValueError(f"no shard '{missing[0] if missing else text}'; check the path")
        shards += found
    if not shards:
        raise ValueError("no shards given; name a folder, a pattern or files")
    return shards


class ShardDataset(StreamDataset):
    """Image-text samples from WebDataset shards.

    Yields {"key": str, "image": PIL RGB, "text": str, "json": dict | None}. Endless by default;
    each epoch has an order of its own, from seed and epoch.

    A sample without a readable image or without text is skipped, counted and named in the log; so
    is the rest of a corrupt shard. Above `max_bad_share` of the samples seen, or of the shards, it
    stops with ValueError.

    Args:
        urls: see `expand_shards`.
        texts: whether each sample must have a text; otherwise it is "" where there is none.
        seed: of the shuffling.
        shuffle: size of the shuffle buffer in samples; 0 keeps the order of the files.
        epochs: None for endless.
        rank, world_size: this process takes the samples whose position % world_size == rank.
        max_bad_share: the share of bad samples at which training stops.
    """

    def __init__(
        self,
        urls: str | Path | Iterable[str | Path],
        *,
        texts: bool = True,
        **options: Unpack[StreamOptions],
    ) -> None:
        self.shards = expand_shards(urls)
        where = str(urls) if isinstance(urls, (str, Path)) else f"{self.shards[0]} ..."
        super().__init__(
            where,
            **options,
        )
        self.texts = texts
        self._corrupt: set[str] = set()

    def _epoch(self, epoch: int) -> Iterator[dict]:
        return self._buffered(self.shards, self._read, epoch)

    def _read(self, shard: str) -> Iterator[dict]:
        """Members of one shard grouped by key, as bytes."""
        from webdataset.tariterators import group_by_keys, tar_file_expander

        try:
            with open(shard, "rb") as stream:
                source = [{"url": shard, "stream": stream}]
                yield from group_by_keys(tar_file_expander(source))
                _check_end(stream)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            self._corrupt.add(shard)
            cause = str(error.args[0]) if error.args else type(error).__name__
            logger.warning("skipped the rest of corrupt shard '%s': %s", shard, cause)
            share = len(self._corrupt) / len(self.shards)
            if share > self.count.max_share:
                raise ValueError(
                    f"{len(self._corrupt)} of {len(self.shards)} shards of '{self.where}' are "
                    f"corrupt, above the allowed share {self.count.max_share:g} (the last is "
                    f"'{shard}'); write or download it again, or raise max_bad_share"
                ) from None

    def _name(self, record: dict) -> str:
        return f"{record['__key__']} in {record['__url__']}"

    def _decode(self, record: dict) -> dict:
        members = members_of(record)
        image = next((k for k in IMAGE_ENDINGS if k in members), None)
        if image is None:
            raise BadSample("it has no image; add one or remove it")
        try:
            facts = json.loads(members["json"]) if "json" in members else None
            text = next((members[k].decode("utf-8") for k in _TEXTS if k in members), None)
        except UnicodeDecodeError:
            raise BadSample("its text is not UTF-8; save it again") from None
        except json.JSONDecodeError as error:
            raise BadSample(f"its json does not parse ({error}); mend it") from None
        if text is None and isinstance(facts, dict):
            text = facts.get("caption")
        key = record["__key__"]
        return pair(key, members[image], f"{key}.{image}", text, facts=facts, texts=self.texts)


def members_of(record: dict) -> dict[str, bytes]:
    """A record's files by their endings."""
    return {k.rsplit(".", 1)[-1]: v for k, v in record.items() if not k.startswith("__")}


def _check_end(stream: BinaryIO) -> None:
    """Raises TarError where a plain tar stopped early: tarfile takes a bad header as the end."""
    rest = stream.read()
    stream.seek(257)
    if stream.read(5) != b"ustar":
        return  # compressed, where reading to the end is a check already
    if rest.strip(b"\0"):
        raise tarfile.ReadError("a header in it is damaged")
    stream.seek(-512, 2)
    if stream.read().strip(b"\0"):
        raise tarfile.ReadError("it is truncated")
