"""Where the rings of the queues are, and which page lists the queues use: what commands have said."""

from __future__ import annotations

from collections.abc import Sequence

from nicmodel.gvnic.device import Nic
from nicmodel.observe.checking import rings
from nicmodel.observe.checking.rings import Ring


class Rings(rings.Rings):
    """The rings of the queues that exist, by the queues' names."""

    def __init__(self, nic: Nic) -> None:
        super().__init__(nic)
        self._pages = nic.pages
        self._lists: dict[str, int] = {}

    def create(self, queue: str, rings: Sequence[Ring], page_list: int) -> None:
        """A queue is about to be created."""
        self.expect(queue, rings)
        self._lists[queue] = page_list

    def extend(self, queue: str, rings: Sequence[Ring]) -> None:
        """A queue that exists has been given more rings."""
        self.expect(queue, (*self.of(queue), *rings))

    def page_list(self, queue: str) -> int | None:
        """Number of the page list that the queue uses, if its format has them and the list is registered."""
        number = self._lists.get(queue, -1)
        return number if number in self._pages else None

    def users(self, page_list: int) -> list[str]:
        """Names of the queues that use a page list."""
        return [queue for queue in self.queues() if self.page_list(queue) == page_list]
