"""Page lists of the QPL formats: the driver registers pages, a queue's addresses are byte offsets in its list.

A queue without a page list uses DMA addresses as they are; so do all queues of the DQO formats, where the addresses lie
in registered pages but are not offsets.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.jit.addresses import load_u64
from nicmodel.jit.compiled import Record, compiled, i64, u64

_NOWHERE = u64(0)


@compiled
def resolve(queue: Record, address: int, count: int) -> tuple[int, int]:
    """Where `count` bytes at `address` of a queue begin, and how many of them lie there in one piece.

    Args:
        queue: a queue's record with `pages`, `page_count` and `page_size`.
        address: what the driver wrote: a DMA address, or an offset in the page list.
        count: bytes wanted, at least 1.

    Returns:
        The DMA address and the number of bytes up to the end of that page; 0 bytes when the list ends before.
    """
    if queue.pages == _NOWHERE:
        return address, count
    size = u64(queue.page_size)
    number = address // size
    if number >= u64(queue.page_count):
        return address, 0
    offset = address - number * size
    return load_u64(queue.pages + number * u64(8)) + offset, min(count, i64(size - offset))


class PageLists:
    """Registered page lists: DMA addresses of pages by list number.

    Args:
        capacity: pages in all lists together.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lists: dict[int, tuple[npt.NDArray[np.uint64], int]] = {}
        #: Pages registered.
        self.pages = 0

    def __len__(self) -> int:
        return len(self._lists)

    def __contains__(self, number: int) -> bool:
        return number in self._lists

    def register(self, number: int, pages: npt.NDArray[np.uint64], page_size: int) -> None:
        """Add list `number`; `pages` are the addresses of its pages, `page_size` bytes each."""
        self._lists[number] = (np.ascontiguousarray(pages, np.uint64), page_size)
        self.pages += len(pages)

    def unregister(self, number: int) -> None:
        """Forget list `number`.

        Raises:
            KeyError: it is not registered.
        """
        self.pages -= len(self._lists.pop(number)[0])

    def clear(self) -> None:
        """Forget all lists."""
        self._lists.clear()
        self.pages = 0

    def addresses(self, number: int) -> tuple[npt.NDArray[np.uint64], int]:
        """The DMA addresses of a list's pages in order, and the bytes of each page.

        Raises:
            KeyError: it is not registered.
        """
        return self._lists[number]

    def fields(self, number: int) -> dict[str, int]:
        """What the record of a queue says of its page list. The addresses stay valid while the list is registered."""
        pages, page_size = self._lists[number]
        return {"pages": pages.ctypes.data, "page_count": len(pages), "page_size": page_size}
