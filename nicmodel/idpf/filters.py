"""Which frames are the vport's: addresses that the driver has added, and modes in which it takes all."""

from __future__ import annotations

from nicmodel.idpf.state import MAX_STATIONS, State
from nicmodel.idpf.virtchnl import Promiscuous, Result, require


class Filters:
    """Addresses and modes; the packet path reads them in `State`. The NIC's own address is always among them.

    Args:
        state: the NIC's.
        promiscuous: take unicast frames to any address, whatever the driver says.
    """

    def __init__(self, state: State, promiscuous: bool) -> None:
        self._state = state
        self._promiscuous = promiscuous
        self._addresses: set[int] = set()
        self.reset()

    def reset(self) -> None:
        """As after power-on."""
        self._addresses.clear()
        self._list()
        self.set_mode(Promiscuous(0))

    def add(self, addresses: list[bytes]) -> None:
        """Take frames to these addresses, too.

        Raises:
            MessageError: they are too many; then none is taken.
        """
        wanted = self._addresses | {int.from_bytes(address, "big") for address in addresses}
        require(len(wanted) <= MAX_STATIONS, Result.NO_SPACE, f"{len(wanted)} addresses, {MAX_STATIONS} are possible")
        self._addresses = wanted
        self._list()

    def delete(self, addresses: list[bytes]) -> None:
        """Take frames to these addresses no more; one that was not added is ignored."""
        self._addresses -= {int.from_bytes(address, "big") for address in addresses}
        self._list()

    def set_mode(self, mode: Promiscuous) -> None:
        """Take frames to all stations, to all groups, or both."""
        self.mode = mode
        self._state.device["promiscuous"] = self._promiscuous or Promiscuous.UNICAST in mode
        self._state.device["all_groups"] = Promiscuous.MULTICAST in mode

    @property
    def addresses(self) -> list[str]:
        """Those that were added, as text."""
        return [address.to_bytes(6, "big").hex(":") for address in sorted(self._addresses)]

    def _list(self) -> None:
        self._state.stations[: len(self._addresses)] = sorted(self._addresses)
        self._state.device["stations"] = len(self._addresses)
