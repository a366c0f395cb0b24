"""Any order of creating, destroying, posting, receiving and sending, against a small model of what must come out."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nicmodel.gvnic.commands import Opcode, Status
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxConfig
from nicmodel.nic.mac import parse_mac
from nicmodel.nic.state import Drop
from nicmodel.testing.guest_memory import GuestMemory

from .conftest import ENTRIES, RAM_SIZE
from .frames import NIC_MAC, pattern, tcp

COUNT = 3
QUEUES = st.integers(0, COUNT - 1)
HEADER = 54

#: The device's backlog: frames for one queue, frames and bytes in all.
HELD_PER_QUEUE, HELD_FRAMES, HELD_BYTES = 256, 512, 1 << 20


@dataclass
class ModelQueue:
    """What a receive queue must do: deliver in order while there are buffers, hold the rest."""

    config: RxConfig
    visible: int = 0
    held: deque[bytes] = field(default_factory=deque)
    delivered: deque[bytes] = field(default_factory=deque)

    def take(self, frame: bytes) -> bool:
        """Deliver a frame if there are buffers for it."""
        split = HEADER if self.config.header_size else 0
        needed = max(1, -(-(len(frame) - split) // self.config.buffer_size))
        if needed > self.visible:
            return False
        self.visible -= needed
        self.delivered.append(frame)
        return True


class NicMachine(RuleBasedStateMachine):
    """TCP to port 5000 + q goes to receive queue q, by rule."""

    def __init__(self) -> None:
        super().__init__()
        profile = Profile(mac=parse_mac(NIC_MAC), queues=COUNT, default_queues=COUNT)
        self.lab = Loopback(profile, ram=GuestMemory("ram", size=RAM_SIZE))
        self.driver = self.lab.driver
        self.queues: dict[int, ModelQueue] = {}
        self.drops: Counter[tuple[int, Drop]] = Counter()
        self.enabled = [False] * COUNT
        self.pending = [False] * COUNT
        self.serial = 0
        self.driver.probe()
        self.add_rules()

    def teardown(self) -> None:
        self.driver.remove()
        assert self.lab.ram.allocated == 0
        self.lab.close()

    def add_rules(self) -> None:
        for queue in range(COUNT):
            self.driver.add_flow_rule(TCPv4(dst_port=5000 + queue), queue)

    # Receive

    @rule(queue=QUEUES, split=st.booleans(), size=st.sampled_from([512, 2048, 4096]), posted=st.booleans())
    def create_rx(self, queue: int, split: bool, size: int, posted: bool) -> None:
        config = RxConfig(entries=ENTRIES, buffer_size=size, header_size=128 if split else 0)
        new = self.driver.make_rx(queue, config)
        if queue in self.queues:
            with pytest.raises(AdminError) as error:
                self.driver.admin_batch([new.create_command()])
            assert error.value.status == Status.ALREADY_EXISTS
            new.free()
            return
        self.driver.admin_batch([new.create_command()])
        self.driver.rx[queue] = new
        self.queues[queue] = ModelQueue(config)
        if posted:
            self.post(queue, ENTRIES)

    @rule(queue=QUEUES)
    def destroy_rx(self, queue: int) -> None:
        self.driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=queue)
        if queue in self.queues:
            self.driver.rx.pop(queue).free()
            self.drops[queue, Drop.NO_QUEUE] += len(self.queues.pop(queue).held)

    @rule(frames=st.lists(st.tuples(QUEUES, st.integers(0, 8800)), max_size=50))
    def receive(self, frames: list[tuple[int, int]]) -> None:
        batch = []
        for number, length in frames:
            self.serial += 1
            frame = tcp(pattern(length, self.serial), dport=5000 + number, seq=self.serial)
            batch.append(frame)
            queue = self.queues.get(number)
            if queue is None:
                self.drops[number, Drop.NO_QUEUE] += 1
            elif not queue.held and queue.take(frame):
                self.pending[number] = True
            elif self.may_hold(queue, frame):
                queue.held.append(frame)
            else:
                self.drops[number, Drop.NO_BUFFERS] += 1
        self.lab.receive(*batch)

    def may_hold(self, queue: ModelQueue, frame: bytes) -> bool:
        held = [len(other) for model in self.queues.values() for other in model.held]
        return len(queue.held) < HELD_PER_QUEUE and len(held) < HELD_FRAMES and sum(held) + len(frame) <= HELD_BYTES

    @precondition(lambda self: self.queues)
    @rule(queue=QUEUES, repost=st.booleans())
    def poll(self, queue: int, repost: bool) -> None:
        """Everything that must have come has come, in order; then the buffers go back."""
        if queue not in self.queues:
            return
        model = self.queues[queue]
        packets = self.driver.poll(queue, repost=False)
        assert [packet.frame for packet in packets] == list(model.delivered)
        assert all(packet.split == bool(model.config.header_size) for packet in packets)
        assert all(packet.checksum_unnecessary for packet in packets)
        model.delivered.clear()
        if repost:
            self.post(queue, ENTRIES)

    @precondition(lambda self: self.queues)
    @rule(queue=QUEUES, count=st.integers(1, ENTRIES))
    def post(self, queue: int, count: int) -> None:
        if queue not in self.queues:
            return
        self.driver.rx[queue].post(count)
        model = self.queues[queue]
        model.visible = self.driver.rx[queue].visible - sum(
            max(1, -(-(len(frame) - (HEADER if model.config.header_size else 0)) // model.config.buffer_size))
            for frame in model.delivered
        )
        while model.held and model.take(model.held[0]):
            model.held.popleft()
            self.pending[queue] = True
        self.lab.run()

    # Transmit

    @rule(queue=QUEUES)
    def create_tx(self, queue: int) -> None:
        if queue not in self.driver.tx:
            self.driver.tx[queue] = self.driver.make_tx(queue, ENTRIES)
            self.driver.admin_batch([self.driver.tx[queue].create_command()])

    @rule(queue=QUEUES)
    def destroy_tx(self, queue: int) -> None:
        self.driver.admin(Opcode.DESTROY_TX_QUEUE, queue_id=queue)
        if queue in self.driver.tx:
            self.driver.tx.pop(queue).free()

    @precondition(lambda self: self.driver.tx)
    @rule(
        queue=QUEUES,
        lengths=st.lists(st.integers(0, 1500), min_size=1, max_size=6),
        report=st.sampled_from([None, True]),
        together=st.booleans(),
    )
    def send(self, queue: int, lengths: list[int], report: bool | None, together: bool) -> None:
        tx = self.driver.tx.get(queue)
        if tx is None:
            return
        frames = [tcp(pattern(length, self.serial)) for length in lengths]
        for number, frame in enumerate(frames):
            last = number == len(frames) - 1
            pieces = [30, len(frame) - 30] if number % 2 else None
            tx.send(frame, fragments=pieces, report_event=True if last else report, kick=last or not together)
        self.lab.run()
        assert self.lab.wire.take() == frames
        tx.poll()
        assert not tx.pending
        assert tx.room == ENTRIES - 1

    # The rest

    @rule(queue=QUEUES)
    def enable(self, queue: int) -> None:
        self.driver.enable(self.driver.rx_block(queue), interval_us=0)
        self.enabled[queue] = True
        self.lab.run()

    @rule()
    def reset(self) -> None:
        """The device forgets all, also what waited for buffers."""
        for number, queue in self.queues.items():
            self.drops[number, Drop.NO_QUEUE] += len(queue.held)
        self.queues.clear()
        self.driver.reset()
        self.add_rules()
        self.enabled = [False] * COUNT
        self.pending = [False] * COUNT

    @invariant()
    def interrupts(self) -> None:
        """A vector fires when it is enabled and something was completed, and masks itself."""
        for queue in range(COUNT):
            expected = self.enabled[queue] and self.pending[queue]
            assert self.driver.fired(self.driver.rx_block(queue)) == expected
            if expected:
                self.enabled[queue] = self.pending[queue] = False

    @invariant()
    def counters(self) -> None:
        state = self.lab.nic.state
        assert state.device["faults"][0] == 0
        for queue in range(COUNT):
            for reason in list(Drop)[Drop.RUNT :]:
                assert state.drops[queue, reason] == self.drops[queue, reason], (queue, reason)
        for queue, model in self.queues.items():
            assert state.rx["held"][queue] == len(model.held)


TestNic = NicMachine.TestCase
TestNic.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
