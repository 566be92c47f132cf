"""Text that grows token by token, given out in pieces that are never taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StreamedText:
    """Turns ids so far into text so far.

    Args:
        decode: ids to text.
        stops: strings at which the text ends; they are not part of it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()):
        self._decode, self._stops = decode, [stop for stop in stops if stop]
        self._given = 0
        self.text = ""
        """All that has been given out."""
        self.stopped = False
        """Whether a stop string came."""

    def more(self, ids: Sequence[int], *, last: bool = False) -> str:
        """What is new and certain; all that is left where `last`."""
        if self.stopped:
            return ""
        text = self._decode(ids)
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, until = True, min(found)
        elif last:
            until = len(text)
        else:
            # Half a character, or what may become a stop string.
            until = len(text.rstrip("\ufffd"))
            until -= max((_overlap(text[:until], stop) for stop in self._stops), default=0)
        piece = text[self._given : until]
        self._given = max(self._given, until)
        self.text += piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """How much of the end of `text` is a beginning of `stop`."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
