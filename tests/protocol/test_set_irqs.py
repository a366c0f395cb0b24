"""DEVICE_SET_IRQS: eventfds come, go and are swapped, vectors are masked, and no interrupt is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from nicmodel.vfio_user import Client, Command, IrqSet, PciIrq
from nicmodel.vfio_user.protocol import IRQ_SET

from .conftest import Lab, open_descriptors

MSIX = PciIrq.MSIX
SET_EVENTFD = IrqSet.DATA_EVENTFD | IrqSet.ACTION_TRIGGER


class Events:
    """A row of eventfds."""

    def __init__(self, count: int) -> None:
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]

    def taken(self, index: int = 0) -> int:
        """How often it was signalled since the last time."""
        try:
            return os.eventfd_read(self.fds[index])
        except BlockingIOError:
            return 0

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def events() -> Iterator[Events]:
    created = Events(32)
    yield created
    created.close()


def trigger(lab: Lab, client: Client, vector: int, index: int = MSIX) -> None:
    lab.run(client, lambda link: link.irqs[index].trigger(vector))


def test_trigger_signals_the_vector(lab: Lab, client: Client, events: Events) -> None:
    client.set_irqs(MSIX, 4, events.fds[:2])
    assert [lab.link.irqs[MSIX].configured(vector) for vector in range(3, 7)] == [False, True, True, False]
    trigger(lab, client, 5)
    assert (events.taken(0), events.taken(1)) == (0, 1)
    trigger(lab, client, 5)
    trigger(lab, client, 5)
    assert events.taken(1) == 2


def test_more_vectors_than_descriptors_fit_into_a_message(lab: Lab, client: Client, events: Events) -> None:
    client.set_irqs(MSIX, 0, events.fds)
    assert lab.server.stats["device_set_irqs"] == 2
    for vector in (0, 15, 16, 31):
        trigger(lab, client, vector)
        assert events.taken(vector) == 1


def test_interrupt_without_eventfd_waits_for_one(lab: Lab, client: Client, events: Events) -> None:
    trigger(lab, client, 3)
    trigger(lab, client, 3)
    assert lab.link.irqs[MSIX].pending(3)
    client.set_irqs(MSIX, 3, events.fds[:1])
    assert events.taken() == 1
    assert not lab.link.irqs[MSIX].pending(3)


def test_withdrawn_and_given_back(lab: Lab, client: Client, events: Events) -> None:
    """So QEMU masks and unmasks a vector: its eventfd is taken away and another one comes."""
    client.set_irqs(MSIX, 0, events.fds[:3])
    client.withdraw_irqs(MSIX, 1, 1)
    assert not lab.link.irqs[MSIX].configured(1)
    trigger(lab, client, 0)
    trigger(lab, client, 1)
    assert (events.taken(0), events.taken(1)) == (1, 0)
    client.set_irqs(MSIX, 1, events.fds[3:4])
    assert (events.taken(1), events.taken(3)) == (0, 1)


def test_swap_while_signalled_keeps_the_old_signal(lab: Lab, client: Client, events: Events) -> None:
    client.set_irqs(MSIX, 0, events.fds[:1])
    trigger(lab, client, 0)
    client.set_irqs(MSIX, 0, events.fds[1:2])
    assert (events.taken(0), events.taken(1)) == (1, 0)


def test_disable_all_forgets_everything(lab: Lab, client: Client, events: Events) -> None:
    before = open_descriptors()
    client.set_irqs(MSIX, 0, events.fds)
    client.withdraw_irqs(MSIX, 9, 1)
    trigger(lab, client, 9)
    client.mask_irqs(MSIX, 8, 1, masked=True)
    client.disable_irqs(MSIX)
    irqs = lab.link.irqs[MSIX]
    for vector in range(32):
        assert not (irqs.configured(vector) or irqs.pending(vector) or irqs.masked(vector))
    assert open_descriptors() == before


def test_disable_of_a_type_without_vectors(client: Client) -> None:
    client.disable_irqs(PciIrq.MSI)


def test_mask_holds_back_and_unmask_delivers(lab: Lab, client: Client, events: Events) -> None:
    client.set_irqs(MSIX, 0, events.fds[:4])
    client.mask_irqs(MSIX, 1, 2, masked=True)
    for vector in range(4):
        trigger(lab, client, vector)
    assert [events.taken(vector) for vector in range(4)] == [1, 0, 0, 1]
    client.mask_irqs(MSIX, 2, 1, masked=False)
    assert [events.taken(vector) for vector in range(4)] == [0, 0, 1, 0]
    client.withdraw_irqs(MSIX, 1, 1)
    client.mask_irqs(MSIX, 1, 1, masked=False)
    client.set_irqs(MSIX, 1, events.fds[1:2])
    assert events.taken(1) == 1


def test_booleans_choose_vectors(lab: Lab, client: Client, events: Events) -> None:
    client.set_irqs(MSIX, 0, events.fds[:4])
    client.set_irqs_raw(MSIX, IrqSet.DATA_BOOL | IrqSet.ACTION_TRIGGER, 1, 3, data=b"\1\0\1")
    assert [events.taken(vector) for vector in range(4)] == [0, 1, 0, 1]
    client.set_irqs_raw(MSIX, IrqSet.DATA_BOOL | IrqSet.ACTION_MASK, 0, 2, data=b"\0\1")
    assert [lab.link.irqs[MSIX].masked(vector) for vector in range(2)] == [False, True]
    client.set_irqs_raw(MSIX, IrqSet.DATA_BOOL | IrqSet.ACTION_UNMASK, 0, 2, data=b"\0\1")
    assert not lab.link.irqs[MSIX].masked(1)


def test_client_triggers_a_range(client: Client, events: Events) -> None:
    client.set_irqs(MSIX, 0, events.fds[:4])
    client.set_irqs_raw(MSIX, IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 2, 2)
    assert [events.taken(vector) for vector in range(4)] == [0, 0, 1, 1]


def test_eventfds_for_mask_changes(client: Client, events: Events) -> None:
    client.set_irqs_raw(MSIX, IrqSet.DATA_EVENTFD | IrqSet.ACTION_MASK, 0, 1, fds=events.fds[:1])
    client.set_irqs_raw(MSIX, IrqSet.DATA_EVENTFD | IrqSet.ACTION_UNMASK, 0, 1, fds=events.fds[1:2])
    client.mask_irqs(MSIX, 0, 1, masked=True)
    client.mask_irqs(MSIX, 0, 1, masked=True)
    assert (events.taken(0), events.taken(1)) == (1, 0)
    client.mask_irqs(MSIX, 0, 1, masked=False)
    assert (events.taken(0), events.taken(1)) == (0, 1)
    client.set_irqs_raw(MSIX, IrqSet.DATA_EVENTFD | IrqSet.ACTION_MASK, 0, 1)
    client.mask_irqs(MSIX, 0, 1, masked=True)
    assert events.taken(0) == 0


def test_intx_masks_itself(lab: Lab, client: Client, events: Events) -> None:
    client.set_irqs(PciIrq.INTX, 0, events.fds[:1])
    trigger(lab, client, 0, PciIrq.INTX)
    trigger(lab, client, 0, PciIrq.INTX)
    assert events.taken() == 1
    assert lab.link.irqs[PciIrq.INTX].masked(0)
    client.mask_irqs(PciIrq.INTX, 0, 1, masked=False)
    assert events.taken() == 1
    client.mask_irqs(PciIrq.INTX, 0, 1, masked=False)
    assert events.taken() == 0
    assert not lab.link.irqs[PciIrq.INTX].masked(0)


def test_intx_resample_eventfd_is_refused(lab: Lab, client: Client, events: Events) -> None:
    with pytest.raises(OSError) as refused:
        client.set_irqs_raw(PciIrq.INTX, IrqSet.DATA_EVENTFD | IrqSet.ACTION_UNMASK, 0, 1, fds=events.fds[:1])
    assert refused.value.errno == errno.ENOTSUP


def test_a_full_counter_does_not_block(lab: Lab, client: Client) -> None:
    full = os.eventfd(0)  # blocking, as far as the client is concerned
    os.eventfd_write(full, 2**64 - 2)
    client.set_irqs(MSIX, 0, [full])
    trigger(lab, client, 0)
    assert os.eventfd_read(full) == 2**64 - 2
    os.close(full)


@pytest.mark.parametrize(
    ("flags", "start", "count", "data", "descriptors"),
    [
        (0, 0, 1, b"", 0),
        (IrqSet.DATA_EVENTFD, 0, 1, b"", 1),
        (IrqSet.ACTION_TRIGGER, 0, 1, b"", 0),
        (SET_EVENTFD | IrqSet.DATA_NONE, 0, 1, b"", 1),
        (SET_EVENTFD | IrqSet.ACTION_MASK, 0, 1, b"", 1),
        (SET_EVENTFD | 64, 0, 1, b"", 1),
        (SET_EVENTFD, 0, 2, b"", 1),
        (SET_EVENTFD, 0, 1, b"", 2),
        (SET_EVENTFD, 0, 0, b"", 0),
        (SET_EVENTFD, 31, 2, b"", 2),
        (SET_EVENTFD, 32, 1, b"", 1),
        (SET_EVENTFD, 0xFFFFFFFF, 0xFFFFFFFF, b"", 0),
        (IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 1, 0, b"", 0),
        (IrqSet.DATA_NONE | IrqSet.ACTION_MASK, 0, 0, b"", 0),
        (IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 0, 1, b"", 1),
        (IrqSet.DATA_BOOL | IrqSet.ACTION_TRIGGER, 0, 2, b"\1", 0),
        (IrqSet.DATA_BOOL | IrqSet.ACTION_TRIGGER, 0, 2, b"\1\1\1", 0),
    ],
)
def test_impossible_requests_change_nothing(
    lab: Lab, client: Client, events: Events, flags: int, start: int, count: int, data: bytes, descriptors: int
) -> None:
    before = open_descriptors()
    with pytest.raises(OSError) as refused:
        client.set_irqs_raw(MSIX, flags, start, count, data=data, fds=events.fds[:descriptors])
    assert refused.value.errno == errno.EINVAL
    assert not any(lab.link.irqs[MSIX].configured(vector) for vector in range(32))
    assert open_descriptors() == before


def test_descriptor_that_is_no_eventfd(lab: Lab, client: Client, events: Events) -> None:
    before = open_descriptors()
    read_end, write_end = os.pipe()
    with pytest.raises(OSError) as refused:
        client.set_irqs(MSIX, 0, [events.fds[0], write_end])
    assert refused.value.errno == errno.EINVAL
    assert not lab.link.irqs[MSIX].configured(0)
    os.close(read_end)
    os.close(write_end)
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        IRQ_SET.pack(IRQ_SET.size, 33, 2, 0, 1)[:-1],
        IRQ_SET.pack(IRQ_SET.size - 1, 33, 2, 0, 1),
        IRQ_SET.pack(IRQ_SET.size, 33, 5, 0, 1),
    ],
)
def test_malformed_requests(client: Client, payload: bytes) -> None:
    with pytest.raises(OSError) as refused:
        client.request(Command.DEVICE_SET_IRQS, payload)
    assert refused.value.errno == errno.EINVAL


def test_a_vector_the_device_does_not_have(lab: Lab, client: Client) -> None:
    for vector in (-1, 32):
        with pytest.raises(IndexError):
            trigger(lab, client, vector)


@pytest.mark.parametrize("action", ["trigger", "mask", "unmask"])
def test_an_eventfd_that_was_made_blocking_and_is_full(lab: Lab, client: Client, action: str) -> None:
    """O_NONBLOCK belongs to the open file, which is the client's as well; a server must not wait for it."""
    eventfd = os.eventfd(0)
    flag = {"trigger": IrqSet.ACTION_TRIGGER, "mask": IrqSet.ACTION_MASK, "unmask": IrqSet.ACTION_UNMASK}[action]
    payload = IRQ_SET.pack(IRQ_SET.size, IrqSet.DATA_EVENTFD | flag, PciIrq.MSIX, 0, 1)
    client.request(Command.DEVICE_SET_IRQS, payload, [eventfd])
    os.set_blocking(eventfd, True)
    os.eventfd_write(eventfd, 0xFFFFFFFFFFFFFFFE)
    for now in (IrqSet.ACTION_MASK, IrqSet.ACTION_UNMASK, IrqSet.ACTION_TRIGGER):
        payload = IRQ_SET.pack(IRQ_SET.size, IrqSet.DATA_NONE | now, PciIrq.MSIX, 0, 1)
        client.request(Command.DEVICE_SET_IRQS, payload)
    assert os.eventfd_read(eventfd) == 0xFFFFFFFFFFFFFFFE
    payload = IRQ_SET.pack(IRQ_SET.size, IrqSet.DATA_NONE | flag, PciIrq.MSIX, 0, 1)
    if action == "unmask":
        client.request(Command.DEVICE_SET_IRQS, IRQ_SET.pack(IRQ_SET.size, 9, PciIrq.MSIX, 0, 1))
    client.request(Command.DEVICE_SET_IRQS, payload)
    assert os.eventfd_read(eventfd) == 1
    os.close(eventfd)
