"""The ladder of an idpf: how far its driver has come.

What a driver has to do is what Linux drivers/net/ethernet/intel/idpf does from idpf_probe to its first packets; whether
it is done is read from the messages that it has sent, and from the NIC's state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from nicmodel.idpf.device import Nic
from nicmodel.idpf.registers import PLACES, Bar
from nicmodel.idpf.virtchnl import Op, Result
from nicmodel.nic import events
from nicmodel.nic.state import Drop
from nicmodel.observe.ladder import Example, Ladder, Need, Step
from nicmodel.pci.config import Command

_DRIVER = "nicmodel/idpf/testing/driver.py"
_MAILBOX = "nicmodel/idpf/testing/mailbox.py"
_PAGE = "idpf.md"
_REGISTERS, _MESSAGES = f"{_PAGE}#registers", f"{_PAGE}#messages"
_OPS = frozenset(Op)
#: Rules of the contract that speak of a message.
_RULES: dict[Op, tuple[str, ...]] = {
    Op.VERSION: ("ORD-001", "ORD-003"),
    Op.GET_CAPS: ("ORD-002",),
    Op.ALLOC_VECTORS: ("VEC-001",),
    Op.CREATE_VPORT: ("VPT-002", "VPT-003"),
    Op.CONFIG_TX_QUEUES: ("QUE-004", "QUE-005", "TXQ-001", "TXQ-002"),
    Op.CONFIG_RX_QUEUES: ("QUE-004", "QUE-005", "RXQ-003", "RXQ-007"),
    Op.MAP_QUEUE_VECTOR: ("VEC-003", "VEC-006"),
    Op.ENABLE_QUEUES: ("QUE-006", "QUE-010", "QUE-011"),
    Op.ENABLE_VPORT: ("VPT-006", "VPT-007"),
    Op.SET_RSS_LUT: ("RSS-002", "RSS-003"),
}
#: Events of the control path that tell of a driver's mistake, as `Nic.counters` has them.
_MISTAKES = {
    "mailbox_fault": "messages or replies lost, as the mailbox or its buffers are not in shared memory",
    "mailbox_reply_lost": "replies lost, as the driver has posted no buffers for them",
    "doorbell_beyond_ring": "tails without effect, beyond the ring",
    "doorbell_unknown": "tails, or vectors, that the device has not given",
    "register_unknown": "writes to no register, or not of 32 bits",
}


class IdpfLife:
    """A driver, from its first register on.

    Args:
        nic: the device.

    Attributes:
        nic: the device.
        at_work: whether it has done anything that only a driver does.
        messages: messages that were executed and passed, by name.
        refused: the last message that was refused: its name, result and reason.
    """

    def __init__(self, nic: Nic) -> None:
        self.nic = nic
        self.at_work: bool = False
        self.messages: Counter[str] = Counter()
        self.refused: tuple[str, str, str] | None = None
        self._drops = nic.state.drops.copy()
        self._counters = Counter(nic.counters)
        self._packets = int(nic.state.tx["packets"].sum()), int(nic.state.rx["frames"].sum())

    def hear(self, event: events.Control) -> bool:
        """See `nicmodel.observe.ladder.Life`."""
        match event:
            case events.Write(region, offset, _) if region == Bar.REGISTERS and offset in PLACES:
                self.at_work = True
            case events.CommandExecuted(number, _, status, reason):
                name = Op(number).name if number in _OPS else str(number)
                if status == Result.OK:
                    self.messages[name] += 1
                else:
                    self.refused = name, status.name, reason
            case _:
                return False
        return True

    def look(self) -> None:
        """See `nicmodel.observe.ladder.Life`: nothing has to be seen in time."""

    @property
    def sent(self) -> int:
        """Packets that the driver has sent."""
        return int(self.nic.state.tx["packets"].sum()) - self._packets[0]

    @property
    def received(self) -> int:
        """Packets that were delivered to it."""
        return int(self.nic.state.rx["frames"].sum()) - self._packets[1]

    def about(self) -> dict[str, Any]:
        """See `nicmodel.observe.ladder.Life`: no message says who the driver is."""
        return {
            "device": "idpf",
            "driver": "",
            "system": "",
            "queue_format": "split" if self.messages[Op.CREATE_VPORT.name] else "",
        }

    def problems(self) -> list[str]:
        """See `nicmodel.observe.ladder.Life`."""
        found = []
        if self.refused is not None:
            name, result, reason = self.refused
            found.append(f"message {name} was refused with {result}" + (f": {reason}" if reason else ""))
        for name, meaning in _MISTAKES.items():
            count = self.nic.counters[name] - self._counters[name]
            if count:
                found.append(f"{count} {meaning}")
        drops = (self.nic.state.drops - self._drops).sum(axis=0)
        reasons = [one for one in Drop if one > Drop.HELD and drops[one]]
        return [*found, *(f"{drops[one]} frames or packets dropped: {one.name.lower()}" for one in reasons)]


def _text(text: str) -> Callable[[IdpfLife], str]:
    return lambda _: text


def _message(
    op: Op, title: str, does: str, text: str, *, file: str = _DRIVER, need: Need = Need.REQUIRED
) -> Step[IdpfLife]:  # fmt: skip
    """A step that a message shows."""
    return Step(
        name=op.name.lower(), title=title, need=need, shows=f"{op.name} has passed",
        waits=_text(f"the message {op.name} ({op.value})"), does=does, example=Example(file, text), datasheet=_MESSAGES,
        rules=_RULES.get(op, ()),
        reached=lambda life: life.messages[op.name] > 0,
    )  # fmt: skip


STEPS: tuple[Step[IdpfLife], ...] = (
    Step(
        name="bus_master", title="bus mastering on", need=Need.REQUIRED,
        shows="bit 2 of the PCI command register is set",
        waits=_text("bit 2 of the PCI command register"),
        does="sets it before it gives the device any memory",
        example=Example(_DRIVER, "command = Command.MEMORY"), datasheet=_REGISTERS, rules=("REG-003",),
        reached=lambda life: Command.BUS_MASTER in life.nic.config.command,
    ),
    Step(
        name="mailbox", title="mailbox given", need=Need.REQUIRED,
        shows="both queues of the mailbox have a length and are enabled",
        waits=_text("base addresses, then lengths with bit 31, of both queues: atqbal, atqbah, atqlen, arqbal, arqbah, "
                    "arqlen"),
        does="posts buffers in the receive queue, and gives the device both",
        example=Example(_MAILBOX, "registers.write(length, ENTRIES"), datasheet=f"{_PAGE}#mailbox",
        rules=("MBX-001", "MBX-002", "MBX-005"),
        reached=lambda life: life.nic.configured,
    ),
    _message(Op.VERSION, "version agreed", "says version 2.0", "self.request(Op.VERSION"),
    _message(Op.GET_CAPS, "capabilities known", "asks for all that it could use", "self.request(Op.GET_CAPS"),
    _message(Op.ALLOC_VECTORS, "vectors granted", "asks for all but the mailbox's", "self.request(Op.ALLOC_VECTORS"),
    _message(
        Op.GET_PTYPE_INFO, "packet types known", "asks until it is told the end", "self.request(Op.GET_PTYPE_INFO",
        need=Need.USUAL,
    ),
    _message(Op.CREATE_VPORT, "vport created", "asks for a pair of queues a CPU", "self.request(Op.CREATE_VPORT"),
    _message(
        Op.CONFIG_TX_QUEUES, "transmit queues configured", "says where rings are", "self._several(Op.CONFIG_TX_QUEUES"
    ),
    _message(
        Op.CONFIG_RX_QUEUES, "receive queues configured", "says where rings are", "self._several(Op.CONFIG_RX_QUEUES"
    ),
    _message(
        Op.MAP_QUEUE_VECTOR, "queues have vectors", "maps pairs of queues to vectors",
        "self._several(Op.MAP_QUEUE_VECTOR", need=Need.USUAL,
    ),
    _message(Op.ENABLE_QUEUES, "queues enabled", "enables all of them at once", "self._several(Op.ENABLE_QUEUES"),
    _message(Op.ENABLE_VPORT, "vport enabled", "enables it, and waits for the link", "self.request(Op.ENABLE_VPORT"),
    _message(
        Op.SET_RSS_LUT, "RSS table set", "spreads over its queues", "self.request(Op.SET_RSS_LUT", need=Need.USUAL
    ),
    Step(
        name="sent", title="packet sent", need=Need.REQUIRED, shows="a packet was taken from a transmit ring",
        waits=_text("descriptors, then a write of the queue's tail"), does="sends, if only to find its neighbours",
        example=Example("nicmodel/idpf/testing/tx.py", "self._ring_tail(self.tail)"), datasheet=f"{_PAGE}#transmit",
        rules=("DBL-002", "TX-RNG-001", "TX-DSC-001", "TX-DSC-003"),
        reached=lambda life: life.sent > 0, sampled=True,
    ),
    Step(
        name="received", title="packet received", need=Need.REQUIRED,
        shows="a frame is in a queue's buffers, with its completion",
        waits=_text("a frame for the NIC's address, and buffers for it"), does="takes completions, and posts buffers",
        example=Example("nicmodel/idpf/testing/rx.py", "self._ring_tail(self.tail)"), datasheet=f"{_PAGE}#receive",
        rules=("RX-RNG-001", "RX-BUF-001", "RX-BUF-002"),
        reached=lambda life: life.received > 0, sampled=True,
    ),
)  # fmt: skip


def ladder(nic: Nic) -> Ladder[IdpfLife]:
    """Watch the driver of an idpf climb, from now on."""
    return Ladder(nic, STEPS, lambda _: IdpfLife(nic))
