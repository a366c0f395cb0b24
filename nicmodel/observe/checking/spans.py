"""Memory that the device owns, kept by page, so that a buffer costs the same however many there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

_PAGE_SHIFT = 12
#: Pieces of one page that are kept: of more, which are no buffers, only so many are compared with.
PAGE_SPANS = 256


class Span(NamedTuple):
    """Memory that the device owns: from `start` up to `end`, by an entry of a ring."""

    start: int
    end: int
    ring: int
    place: int


class Spans:
    """Memory that the device owns, by page."""

    def __init__(self) -> None:
        self._pages: defaultdict[int, list[Span]] = defaultdict(list)

    def clear(self) -> None:
        """All of it is the driver's again."""
        self._pages.clear()

    def add(self, span: Span) -> Span | None:
        """More memory; an earlier span that it overlaps."""
        clash = None
        for page in range(span.start >> _PAGE_SHIFT, (span.end - 1 >> _PAGE_SHIFT) + 1):
            there = self._pages[page]
            for other in there:
                if other.start < span.end and span.start < other.end:
                    clash = other
            if len(there) < PAGE_SPANS:
                there.append(span)
        return clash

    def within(self, start: int, end: int) -> Iterator[Span]:
        """What of it lies from `start` up to `end`."""
        pages = range(start >> _PAGE_SHIFT, (end - 1 >> _PAGE_SHIFT) + 1)
        for page in pages if len(pages) < len(self._pages) else [one for one in self._pages if one in pages]:
            yield from (span for span in self._pages.get(page, ()) if span.start < end and start < span.end)

    def remove(self, span: Span) -> None:
        """The memory of an entry is the driver's again, if it was not before."""
        for page in range(span.start >> _PAGE_SHIFT, (span.end - 1 >> _PAGE_SHIFT) + 1):
            there = self._pages.get(page)
            if there is not None and span in there:
                there.remove(span)
                if not there:
                    del self._pages[page]

    def keep(self, wanted: Callable[[Span], bool]) -> None:
        """All memory but that of `wanted` entries is the driver's again."""
        kept = {page: [span for span in there if wanted(span)] for page, there in self._pages.items()}
        self._pages = defaultdict(list, {page: there for page, there in kept.items() if there})

    def forget(self, ring: int) -> None:
        """All memory of a ring is the driver's again."""
        self.keep(lambda span: span.ring != ring)
