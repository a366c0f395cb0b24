"""Where the rings of the queues are: what messages have said."""

from __future__ import annotations

from nicmodel.idpf.descriptors import RX_BUFFER, RX_COMPLETION, TX_COMPLETION, TX_FLOW_DATA
from nicmodel.idpf.device import Nic
from nicmodel.idpf.queues import Name, Queues
from nicmodel.idpf.virtchnl import QueueType, Scheduling
from nicmodel.nic.layout import Form, record
from nicmodel.observe.checking import rings
from nicmodel.observe.checking.rings import Ring
from nicmodel.vfio_user.dma import READABLE, WRITABLE

#: A completion in queue scheduling mode: the first four bytes of one in the other.
_SHORT_COMPLETION = record(("completion", "<u4"))

_KINDS: dict[QueueType, tuple[str, Form, int]] = {
    QueueType.TX: ("transmit ring", TX_FLOW_DATA, READABLE),
    QueueType.RX: ("completion ring", RX_COMPLETION, WRITABLE),
    QueueType.TX_COMPLETION: ("completion ring", TX_COMPLETION, WRITABLE),
    QueueType.RX_BUFFER: ("ring of buffers", RX_BUFFER, READABLE),
}


def ring_of(queues: Queues, name: Name) -> Ring:
    """The ring of a queue that was configured."""
    config = queues.configured[name]
    called, entry, right = _KINDS[name[0]]
    if name[0] is QueueType.TX_COMPLETION and config["sched_mode"] == Scheduling.QUEUE:
        entry = _SHORT_COMPLETION
    return Ring(called, int(config["ring_address"]), int(config["ring_len"]), entry, right)


def buffer_queues(queues: Queues, number: int) -> list[int]:
    """The buffer queues that a receive queue, which was configured, names: one or two."""
    config = queues.configured[QueueType.RX, number]
    return [int(config["rx_bufq1_id"]), *([int(config["rx_bufq2_id"])] if config["bufq2_ena"] else [])]


class Rings(rings.Rings):
    """The rings of the queues that have begun. One whose vector is off rests, but its memory is the device's."""

    _nic: Nic

    def queues(self) -> list[str]:
        """Names of the queues that have begun."""
        state = self._nic.state
        return [f"{way}{number}" for way, entries in (("rx", state.rx["buffer_entries"]), ("tx", state.tx["entries"]))
                for number in entries.nonzero()[0]]  # fmt: skip

    def clear(self) -> None:
        """No queue is there."""
        self._rings.clear()

    def update(self) -> tuple[list[str], list[str]]:
        """Look at what there is now: the names of the queues that have ended since, and of those that have begun."""
        there, queues = self.queues(), self._nic.queues
        ended = [name for name in self._rings if name not in there]
        for name in ended:
            del self._rings[name]
        begun = [name for name in there if name not in self._rings]
        for name in begun:
            number = int(name[2:])
            if name.startswith("tx"):
                completions = int(queues.configured[QueueType.TX, number]["tx_compl_queue_id"])
                names = [(QueueType.TX, number), (QueueType.TX_COMPLETION, completions)]
            else:
                buffers = buffer_queues(queues, number)
                names = [(QueueType.RX, number), *((QueueType.RX_BUFFER, one) for one in buffers)]
            self.expect(name, [ring_of(queues, one) for one in names])
        return ended, begun
