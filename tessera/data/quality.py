"""What could not be used, counted and named; and the share past which a run must stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tessera.data.sample import Image
from tessera.errors import BadSample, DataError

MAX_TEXT_BYTES = 100_000
SMALL = 128 * 128  # pixels of a picture that may lie decoded in a batch of thousands

_log = logging.getLogger("tessera.data")


def check_text(text: str) -> str:
    """`text` itself, where it can be learned from.

    Raises:
        BadSample: it is empty, longer than 100 kB, or not valid Unicode.
    """
    if not text.strip():
        raise BadSample("the text is empty")
    try:
        number = len(text.encode("utf-8"))
    except UnicodeEncodeError:  # half of a surrogate pair, as a broken JSON escape leaves it
        raise BadSample("the text is not valid Unicode") from None
    if number > MAX_TEXT_BYTES:
        raise BadSample(f"a text of {number:,} bytes is over the limit of {MAX_TEXT_BYTES:,}")
    return text


def allowed(tried: int, total: int, share: float = 0.001) -> int:
    """How many of `tried` samples, out of a set of `total`, may be bad.

    It is `share` of those tried, but at least 10, or half of a set under 20: a small folder lives with a few
    broken files, and a set of nothing but broken files stops.
    """
    return int(max(share * tried, min(10, total / 2)))


class Opener:
    """Opens stored pictures, each once, before the step that needs them: one that cannot be read is then a bad sample
    of the loader, which skips, counts and names it, and does not end the run."""

    def __init__(self) -> None:
        self._good: set[str] = set()

    def __call__(self, images: Iterable[Image]) -> tuple[Image, ...]:
        """The same, small ones that were opened as what they hold, so that the step need not decode them again.

        Raises:
            BadSample: one cannot be read.
        """
        return tuple(self._opened(image) for image in images)

    def _opened(self, image: Image) -> Image:
        if not image.stored or image.key in self._good:
            return image
        picture = image.pil()
        if image.key is not None:
            self._good.add(image.key)
        return replace(image, source=picture) if picture.width * picture.height <= SMALL else image


class SkipLog:
    """The bad samples of a run, each named once in the log with its reason.

    Args:
        total: samples in the whole set.
        share: the share of samples that may be bad; see `allowed` for small sets.
    """

    def __init__(self, total: int, share: float = 0.001) -> None:
        self.total = total
        self.share = share
        self.bad: dict[str, str] = {}
        self._lock = threading.Lock()

    def skip(self, name: str, reason: str, tried: int) -> None:
        """Note one bad sample among `tried` different ones so far. A sample met again is not counted again.

        Raises:
            DataError: more are bad than `allowed`.
        """
        with self._lock:
            if name in self.bad:
                return
            self.bad[name] = reason
            count = len(self.bad)
        _log.warning("skipped %s: %s", name, reason)
        tried = max(count, min(tried, self.total))
        limit = allowed(tried, self.total, self.share)
        if count > limit:
            raise DataError(
                f"{count} of {tried} samples could not be used, more than the {limit} allowed;"
                f" the last was {name}: {reason}; repair or remove them"
            )

    def state_dict(self) -> dict[str, Any]:
        """The bad samples so far, as JSON."""
        return {"bad": dict(self.bad)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a count where it was left."""
        self.bad = dict(state["bad"])


class Tally:
    """What a reader left out while it listed a set: counts by reason, with the first few names."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.counts: dict[str, int] = {}

    def add(self, reason: str, name: str) -> None:
        """Count `name` as left out for `reason`."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        first = self.names.setdefault(reason, [])
        if len(first) < 3:
            first.append(name)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        """'2 no caption (a.png, b.png); 1 empty caption (c.png)', or 'nothing was left out'."""
        parts = []
        for reason, count in self.counts.items():
            names = self.names[reason]
            more = ", ..." if count > len(names) else ""
            parts.append(f"{count} {reason} ({', '.join(names)}{more})")
        return "; ".join(parts) or "nothing was left out"

    def log(self, name: str, kept: int) -> None:
        """Write what was kept and left out of the set `name` to the log."""
        if self.counts:
            _log.warning("%s: %d samples; left out: %s", name, kept, self)
        else:
            _log.info("%s: %d samples", name, kept)
