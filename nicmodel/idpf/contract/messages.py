"""Rules of messages: their descriptors and payloads (MSG), their order (ORD), and what each of them says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.contract.rings import buffer_queues, ring_of
from nicmodel.idpf.control import VPORT
from nicmodel.idpf.decoder import explained
from nicmodel.idpf.descriptors import MAILBOX, MAILBOX_BUFFER, MAX_BUFFER, RX_COMPLETION, RXDID, MailboxOpcode
from nicmodel.idpf.device import Nic
from nicmodel.idpf.mailbox import VECTOR
from nicmodel.idpf.profile import LINUX_OVERHEAD
from nicmodel.idpf.queues import MAX_RING, MIN_RING, Name
from nicmodel.idpf.virtchnl import (
    Flow,
    MacType,
    MessageError,
    Op,
    Promiscuous,
    Protocol,
    QueueModel,
    QueueType,
    RxFlag,
    Scheduling,
    TxFlag,
)
from nicmodel.nic.layout import size_of
from nicmodel.nic.state import MIN_BUFFER
from nicmodel.observe.checking.rings import Ring
from nicmodel.observe.findings import Journal
from nicmodel.observe.mapped_memory import MappedMemory
from nicmodel.vfio_user.dma import READABLE

_OPS = frozenset(Op) - {Op.EVENT}
_FLAGS = (MAILBOX.read, MAILBOX.buffer)
_BOTH_FLAGS = sum(bits.put(1) for bits in _FLAGS)
#: Fields of a message's descriptor that its sender leaves 0.
_NOT_SENT = ("function", "descriptor_type", "status", "message_flags")
#: Bytes of a data buffer, and of a header buffer, are a multiple of these; and the most of the latter.
_BUFFER_STEP, _HEADER_STEP, _MAX_HEADER = 128, 64, 960
#: Messages of a feature that is not granted always.
_STEERING = (Op.ADD_FLOW_RULE, Op.DEL_FLOW_RULE)
#: What headers a flow rule may be about.
_HEADERS = ((Protocol.IPV4, Protocol.TCP), (Protocol.IPV4, Protocol.UDP))
_OF_TX = (QueueType.TX, QueueType.TX_COMPLETION)
_OF_RX = (QueueType.RX, QueueType.RX_BUFFER)
#: In the first place of a completion where its generation bit is, by bytes of a completion.
_GENERATION = {32: RX_COMPLETION.generation.bit, 8: 15, 4: 15}


class Messages:
    """Looks at each message before it is executed, and at what came of it.

    Attributes:
        resets: the last message asks for a reset.
    """

    def __init__(self, nic: Nic, memory: MappedMemory, journal: Journal) -> None:
        self._nic = nic
        self._memory = memory
        self._journal = journal
        #: What looks at each message: the method of its name, where there is more to say than its declaration does.
        self._checks: dict[Op, Callable[[np.void], object]] = {
            op: getattr(self, f"_{op.name.lower()}", lambda _: None) for op in _OPS - {Op.VERSION}
        }
        self._checks[Op.VERSION] = self._look_at_version
        self._op = Op.VERSION
        self._fields: dict[str, Any] = {}
        # Since the last reset; a driver that is at work already has done all that.
        self._version = self._capabilities = nic.configured
        self._vectors: tuple[int, int] | None = None  # the first that was allocated, and how many
        if nic.configured:
            self._vectors = VECTOR + 1, nic.profile.vectors - 1
        self.resets = False

    def reset(self) -> None:
        """The device is as after power-on."""
        self._version = self._capabilities = False
        self._vectors = None

    @property
    def vectors(self) -> range:
        """Vectors of queues that were allocated."""
        first, count = self._vectors or (0, 0)
        return range(first, first + count)

    # The descriptor.

    def fetched(self, raw: bytes) -> None:
        """A message's descriptor was read; the message is about to be executed."""
        descriptor = MAILBOX.decode(raw)
        self._fields = {}
        number = descriptor["message"]
        self.resets = number == Op.RESET_VF
        evidence: dict[str, Any] = {"descriptor": descriptor, "bytes": raw.hex()}
        if descriptor["opcode"] != MailboxOpcode.SEND_TO_CONTROL_PLANE:
            self._find("MSG-001", f"the opcode is {descriptor['opcode']:#x}", **evidence)
        flags, length = int.from_bytes(raw[:2], "little"), descriptor["length"]
        if flags != (_BOTH_FLAGS if length else 0):
            self._find("MSG-002", f"flags {flags:#06x} of a message of {length} bytes", **evidence)
        for name in _NOT_SENT:
            if descriptor[name]:
                self._find("MSG-004", f"{name} is {descriptor[name]:#x}", **evidence)
        if number not in _OPS:
            self._find("MSG-005", f"the message is {number}", **evidence)
            return
        address = descriptor["address_high"] << 32 | descriptor["address_low"]
        if length > MAILBOX_BUFFER or not self._memory.mapped(address, length, READABLE):
            self._find("MSG-003", f"a payload of {length} bytes at {address:#x} cannot be read", **evidence)
            return
        payload = self._memory.read(address, length) if length else b""
        if payload is None:  # reached by messages of vfio-user only
            return
        self._op = op = Op(number)
        try:
            parsed = op.message.parse(payload)
        except MessageError as error:
            self._find("MSG-006", f"{op.name} has {error}", **evidence)
            return
        if parsed.dtype.names:
            self._fields = explained(parsed)
        self._journal.note(None, op.name, **{k: one for k, one in self._fields.items() if not isinstance(one, list)})
        if any(_padding(parsed)):
            self._find("MSG-007", f"{op.name} has bits set in its padding")
        if self._in_order(op) and self._is_granted(op) and self._has_vport(op, parsed):
            self._checks[op](parsed)

    def executed(self, number: int) -> None:
        """A message was executed, and has passed."""
        if number == Op.VERSION:
            self._version = True
        elif number == Op.GET_CAPS:
            self._capabilities = True
        elif number == Op.ALLOC_VECTORS:
            self._vectors = VECTOR + 1, int(self._fields["num_vectors"])
        elif number == Op.DEALLOC_VECTORS:
            self._vectors = None

    def _find(self, rule: str, what: str, **evidence: Any) -> None:
        fields = {"message": self._fields} if self._fields and "descriptor" not in evidence else {}
        self._journal.report(rule, what, None, **fields, **evidence)

    # Before what it says.

    def _in_order(self, op: Op) -> bool:
        if op is Op.VERSION:
            if self._version:
                self._find("ORD-001", "VERSION is sent again")
        elif not self._version:
            if op is not Op.RESET_VF:
                self._find("ORD-001", f"{op.name} is sent before VERSION")
                return False
        elif op is Op.GET_CAPS:
            if self._capabilities:
                self._find("ORD-002", "GET_CAPS is sent again")
        elif not self._capabilities and op is not Op.RESET_VF:
            self._find("ORD-002", f"{op.name} is sent before GET_CAPS")
            return False
        return True

    def _is_granted(self, op: Op) -> bool:
        if op in _STEERING and not self._nic.profile.max_flow_rules:
            self._find("CAP-001", f"{op.name}, but the device has not granted flow steering")
            return False
        return True

    def _has_vport(self, op: Op, p: np.void) -> bool:
        if "vport_id" not in (p.dtype.names or ()) or op is Op.CREATE_VPORT:
            return True
        there = self._nic.control.vport and int(p["vport_id"]) == VPORT
        if not there:
            self._find("VPT-001", f"{op.name} is about vport {p['vport_id']}, which does not exist")
        return there

    # The device as a whole.

    def _look_at_version(self, p: np.void) -> None:
        if (int(p["major"]), int(p["minor"])) != (v.VERSION_MAJOR, v.VERSION_MINOR):
            self._find("ORD-003", f"the version is {p['major']}.{p['minor']}")

    def _alloc_vectors(self, p: np.void) -> None:
        wanted, most = int(p["num_vectors"]), self._nic.profile.vectors - 1
        if not 0 < wanted <= most:
            self._find("VEC-001", f"{wanted} vectors are asked for, {most} are left")

    def _dealloc_vectors(self, p: np.void) -> None:
        chunks = Op.DEALLOC_VECTORS.message.several(p)
        given = [(int(one["start_vector_id"]), int(one["num_vectors"])) for one in chunks]
        if self._vectors is None or given != [self._vectors]:
            self._find("VEC-002", f"vectors {given} are given back", allocated=self._vectors)
        elif self._nic.queues.mapped:
            self._find("VEC-008", f"vectors are given back with {len(self._nic.queues.mapped)} queues mapped to them")

    # The vport.

    def _create_vport(self, p: np.void) -> None:
        if self._nic.control.vport:
            self._find("VPT-004", "a vport is created, and there is one")
        elif (int(p["txq_model"]), int(p["rxq_model"])) != (QueueModel.SPLIT,) * 2:
            self._find("VPT-002", f"a vport of queue models {p['txq_model']} and {p['rxq_model']}")
        else:
            self._numbers("VPT-003", p)

    def _numbers(self, rule: str, p: np.void) -> None:
        """How many queues of each type are asked for."""
        profile = self._nic.profile
        for name, most in (
            ("num_tx_q", profile.tx_queues), ("num_tx_complq", profile.tx_queues),
            ("num_rx_q", profile.queues), ("num_rx_bufq", profile.buffer_queues),
        ):  # fmt: skip
            if not 0 < int(p[name]) <= most:
                self._find(rule, f"{name} is {p[name]}; the device has {most}")
                return

    def _destroy_vport(self, p: np.void) -> None:
        if self._nic.control.up:
            self._find("VPT-005", "the vport is destroyed while it is enabled")
        self._none_enabled(self._nic.queues.enabled, "the vport is destroyed")

    def _none_enabled(self, names: Iterator[Name] | set[Name], what: str) -> None:
        enabled = sorted(names)
        if enabled:
            queues = [f"{kind.name.lower()} {number}" for kind, number in enabled]
            self._find("QUE-013", f"{what} with {len(enabled)} queues enabled", queues=queues)

    def _enable_vport(self, p: np.void) -> None:
        if self._nic.control.up:
            self._find("VPT-006", "the vport is enabled, and was so already")
        elif not self._nic.queues.enabled:
            self._find("VPT-007", "the vport is enabled, and none of its queues is")
        else:
            self._check_complete()

    def _check_complete(self) -> None:
        enabled = self._nic.queues.enabled
        for name in sorted(enabled):
            for other in self._partners(name):
                if other not in enabled:
                    self._find("QUE-011", f"the vport is enabled, {_called(name)} as well, {_called(other)} is not")

    def _disable_vport(self, p: np.void) -> None:
        if not self._nic.control.up:
            self._find("VPT-006", "the vport is disabled, and was not enabled")

    # Queues.

    def _add_queues(self, p: np.void) -> None:
        self._numbers("QUE-014", p)

    def _named(self, p: np.void) -> list[Name]:
        """The queues that chunks name; a finding of the first that the vport does not have."""
        found: list[Name] = []
        for chunk in self._op.message.several(p):
            first, count = int(chunk["start_queue_id"]), int(chunk["num_queues"])
            if not self._has(int(chunk["type"]), first + count - 1):
                return []
            found += [(QueueType(int(chunk["type"])), number) for number in range(first, first + count)]
        return found

    def _has(self, kind: int, number: int) -> bool:
        """Whether the vport has a queue; a finding if not."""
        granted = self._nic.queues.granted
        if kind in set(QueueType) and number < granted[QueueType(kind)]:
            return True
        self._find("QUE-001", f"queue {number} of type {kind}, which the vport does not have")
        return False

    def _config_tx_queues(self, p: np.void) -> None:
        for one in Op.CONFIG_TX_QUEUES.message.several(p):
            if not self._settable(one, _OF_TX):
                continue
            name = _text(one)
            if int(one["sched_mode"]) not in set(Scheduling):
                self._find("TXQ-001", f"{name} has the scheduling mode {one['sched_mode']}")
            if int(one["qflags"]) & ~int(TxFlag.MISS_COMPLETIONS) or one["peer_type"] or one["peer_rx_queue_id"]:
                self._find("TXQ-005", f"{name} has flags that there are not, or a peer")
            if one["type"] == QueueType.TX and int(one["tx_compl_queue_id"]) >= self._granted(QueueType.TX_COMPLETION):
                self._find("TXQ-002", f"{name} names completion queue {one['tx_compl_queue_id']}")

    def _config_rx_queues(self, p: np.void) -> None:
        profile = self._nic.profile
        for one in Op.CONFIG_RX_QUEUES.message.several(p):
            if not self._settable(one, _OF_RX):
                continue
            name, flags, size, header = (
                _text(one), int(one["qflags"]), int(one["data_buffer_size"]), int(one["hdr_buffer_size"]),
            )  # fmt: skip
            split = bool(flags & RxFlag.HEADER_SPLIT)
            large = flags & RxFlag.DESCRIPTORS_32 or one["type"] == QueueType.RX_BUFFER
            if flags & RxFlag.DESCRIPTORS_16 or not large:
                self._find("RXQ-002", f"{name} has flags {flags:#x}")
            if flags & (RxFlag.HEADER_SPLIT | RxFlag.RSC) and not profile.header_split:
                self._find("CAP-002", f"{name} has flags {flags:#x}, and neither header split nor RSC is granted")
            if not MIN_BUFFER <= size <= MAX_BUFFER or size % _BUFFER_STEP:
                self._find("RXQ-003", f"{name} has buffers of {size} bytes")
            if split and (not 0 < header <= _MAX_HEADER or header % _HEADER_STEP):
                self._find("RXQ-004", f"{name} has header buffers of {header} bytes")
            if one["type"] != QueueType.RX:
                continue
            if int(one["desc_ids"]) != 1 << RXDID:
                self._find("RXQ-001", f"{name} has completion formats {int(one['desc_ids']):#x}")
            longest = profile.max_mtu + LINUX_OVERHEAD
            if not 0 < int(one["max_pkt_size"]) <= longest:
                self._find("RXQ-009", f"{name} has packets of {one['max_pkt_size']} bytes, the vport of {longest}")
            buffers = [int(one["rx_bufq1_id"]), *([int(one["rx_bufq2_id"])] if one["bufq2_ena"] else [])]
            if max(buffers) >= self._granted(QueueType.RX_BUFFER) or len(set(buffers)) < len(buffers):
                self._find("RXQ-007", f"{name} names buffer queues {buffers}")

    def _granted(self, kind: QueueType) -> int:
        return self._nic.queues.granted[kind]

    def _settable(self, one: np.void, kinds: Sequence[QueueType]) -> bool:
        """Whether a queue can be configured so, whatever its type."""
        kind, number, entries, address = (int(one[name]) for name in ("type", "queue_id", "ring_len", "ring_address"))
        if not self._has(kind, number):
            return False
        name = _text(one)
        if kind not in kinds:
            self._find("QUE-002", f"{name} in {self._op.name}")
            return False
        if (QueueType(kind), number) in self._nic.queues.enabled:
            self._find("QUE-009", f"{name} is configured while it is enabled")
            return False
        if one["model"] != QueueModel.SPLIT:
            self._find("QUE-003", f"{name} has the queue model {one['model']}")
        if not MIN_RING <= entries <= MAX_RING or entries % MIN_RING:
            self._find("QUE-004", f"the ring of {name} has {entries} entries")
        form = {QueueType.TX: 16, QueueType.TX_COMPLETION: 8}.get(QueueType(kind), 32)
        if address == 0 or address % form:
            self._find("QUE-005", f"the ring of {name} is at {address:#x}")
        return True

    def _enable_queues(self, p: np.void) -> None:
        queues = self._nic.queues
        names = self._named(p)
        for name in names:
            if name not in queues.configured:
                self._find("QUE-010", f"{_called(name)} is enabled, and was not configured")
                return
            if name in queues.enabled:
                self._find("QUE-012", f"{_called(name)} is enabled, and was so already")
        enabled = {*names, *queues.enabled}
        new = [name for name in names if name not in queues.enabled]
        self._check_rings(new)
        # Each queue may be enabled by a message of its own, as DPDK does it: those that are complete now are looked at.
        begun = [name for name in sorted(enabled) if not {name, *self._partners(name)}.isdisjoint(new)]
        self._check_pairs([name for name in begun if enabled.issuperset(self._partners(name))], enabled)

    def _partners(self, name: Name) -> list[Name]:
        """The queues that a transmit or receive queue works with."""
        kind, number = name
        if kind is QueueType.TX:
            return [(QueueType.TX_COMPLETION, int(self._nic.queues.configured[name]["tx_compl_queue_id"]))]
        if kind is QueueType.RX:
            return [(QueueType.RX_BUFFER, one) for one in buffer_queues(self._nic.queues, number)]
        return []

    def _check_rings(self, new: list[Name]) -> None:
        queues = self._nic.queues
        others: list[tuple[Name, Ring]] = [(name, ring_of(queues, name)) for name in sorted(queues.enabled)]
        for name in new:
            ring = ring_of(queues, name)
            if not self._memory.mapped(ring.address, ring.size, ring.right):
                self._find("QUE-006", f"the {ring.name} of {_called(name)} at {ring.address:#x} is not all in memory")
                continue
            for other, its in others:
                if ring.overlaps(its.address, its.size):
                    self._find(
                        "QUE-007", f"the {ring.name} of {_called(name)} shares memory with that of {_called(other)}",
                        ring_address=ring.address, other_address=its.address,
                    )  # fmt: skip
                    break
            else:
                if name[0] in (QueueType.RX, QueueType.TX_COMPLETION):
                    self._check_unwritten(name, ring)
            others.append((name, ring))

    def _check_unwritten(self, name: Name, ring: Ring) -> None:
        raw = self._memory.read(ring.address, ring.size)
        if raw is None:
            return
        size = size_of(ring.entry)
        byte, bit = divmod(_GENERATION[size], 8)
        written = np.frombuffer(raw, np.uint8)[byte::size] & 1 << bit
        if written.any():
            place = int(np.flatnonzero(written)[0])
            self._find(
                "QUE-008", f"entry {place} of the {ring.name} of {_called(name)} looks like a completion",
                entry=raw[place * size : (place + 1) * size].hex(),
            )  # fmt: skip

    def _check_pairs(self, new: list[Name], enabled: set[Name]) -> None:
        """Look at what queues that work together say of themselves."""
        configured = self._nic.queues.configured
        begun = sorted(enabled)
        for kind, number in new:
            one = configured[kind, number]
            if kind is QueueType.TX:
                completions = int(one["tx_compl_queue_id"])
                its = configured[QueueType.TX_COMPLETION, completions]
                if its["sched_mode"] != one["sched_mode"]:
                    self._find("TXQ-001", f"tx {number} has not the scheduling mode of its completion queue")
                if its["ring_len"] < one["ring_len"]:
                    self._find("TXQ-003", f"tx {number}: {its['ring_len']} completions, {one['ring_len']} descriptors")
                for _, other in [name for name in begun if name[0] is QueueType.TX and name[1] < number]:
                    theirs = configured[QueueType.TX, other]
                    if all(theirs[name] == one[name] for name in ("tx_compl_queue_id", "relative_queue_id")):
                        self._find("TXQ-004", f"tx {number} and {other} are both {one['relative_queue_id']}")
            elif kind is QueueType.RX:
                buffers = buffer_queues(self._nic.queues, number)
                its_buffers = [configured[QueueType.RX_BUFFER, other] for other in buffers]
                room, posted = int(one["ring_len"]), sum(int(each["ring_len"]) for each in its_buffers)
                if posted > room:
                    self._find("RXQ-008", f"rx {number}: {room} completions, {posted} buffers")
                if len({_header(each) for each in its_buffers}) > 1:
                    self._find(
                        "RXQ-005", f"rx {number} has header buffers of {[_header(each) for each in its_buffers]} bytes"
                    )
                sizes = [int(each["data_buffer_size"]) for each in its_buffers]
                if sizes[0] < sizes[-1]:
                    self._find("RXQ-006", f"rx {number} has buffers of {sizes} bytes")
                for _, other in [name for name in begun if name[0] is QueueType.RX and name[1] < number]:
                    if set(buffer_queues(self._nic.queues, other)) & set(buffers):
                        self._find("RXQ-007", f"rx {number} and {other} have buffer queues in common: {buffers}")

    def _disable_queues(self, p: np.void) -> None:
        for name in self._named(p):
            if name not in self._nic.queues.enabled:
                self._find("QUE-012", f"{_called(name)} is disabled, and was not enabled")

    def _del_queues(self, p: np.void) -> None:
        self._none_enabled({name for name in self._named(p) if name in self._nic.queues.enabled}, "queues are deleted")

    # Vectors.

    def _maps(self, p: np.void) -> Iterator[tuple[np.void, Name]]:
        for one in self._op.message.several(p):
            kind, number = int(one["queue_type"]), int(one["queue_id"])
            if kind not in (QueueType.TX, QueueType.RX):
                self._find("VEC-005", f"queue {number} of type {kind} has no vector")
            elif self._has(kind, number):
                yield one, (QueueType(kind), number)

    def _map_queue_vector(self, p: np.void) -> None:
        for one, name in self._maps(p):
            vector, index = int(one["vector_id"]), int(one["itr_idx"])
            if vector not in self.vectors:
                self._find("VEC-003", f"{_called(name)} is mapped to vector {vector}", allocated=list(self.vectors))
            if index > 1:
                self._find("VEC-004", f"{_called(name)} waits for interval {index}")
            if name in self._nic.queues.enabled:
                self._find("VEC-006", f"{_called(name)} is mapped while it is enabled")

    def _unmap_queue_vector(self, p: np.void) -> None:
        for one, name in self._maps(p):
            mapped = self._nic.queues.mapped.get(name)
            if mapped is None or mapped.vector != int(one["vector_id"]):
                there = "nothing" if mapped is None else f"vector {mapped.vector}"
                self._find("VEC-007", f"{_called(name)} is unmapped from vector {one['vector_id']}, not from {there}")

    # Steering and filters.

    def _set_rss_key(self, p: np.void) -> None:
        if int(p["key_len"]) != v.RSS_KEY_SIZE:
            self._find("RSS-001", f"a key of {p['key_len']} bytes, not of {v.RSS_KEY_SIZE}")

    def _set_rss_lut(self, p: np.void) -> None:
        end, queues = int(p["lut_entries_start"]) + int(p["lut_entries"]), self._granted(QueueType.RX)
        entries = Op.SET_RSS_LUT.message.several(p)
        wrong = np.flatnonzero(entries >= queues)
        if end > v.RSS_LUT_SIZE:
            self._find("RSS-002", f"entries up to {end} of {v.RSS_LUT_SIZE} are set")
        elif len(wrong):
            self._find("RSS-003", f"entry {wrong[0]} names receive queue {entries[wrong[0]]} of {queues}")

    def _set_rss_hash(self, p: np.void) -> None:
        if int(p["ptype_groups"]) & ~sum(Flow):
            self._find("RSS-004", f"flows {int(p['ptype_groups']):#x} are to be hashed")

    def _add_flow_rule(self, p: np.void) -> None:
        queues, most = self._granted(QueueType.RX), self._nic.profile.max_flow_rules
        for rule in Op.ADD_FLOW_RULE.message.several(p):
            number = int(rule["rule_id"])
            headers = tuple(rule["headers"]["type"][: int(rule["num_headers"])].tolist())
            action = rule["actions"][0]
            if number >= most:
                self._find("RUL-001", f"flow rule {number} of {most}")
            elif headers not in _HEADERS or rule["tunnel_level"]:
                self._find("RUL-002", f"flow rule {number} is about headers {list(headers)}")
            elif rule["num_actions"] != 1 or action["type"] != v.ACTION_QUEUE:
                self._find("RUL-003", f"flow rule {number} has {rule['num_actions']} actions, of type {action['type']}")
            elif action["value"] >= queues:
                self._find("RUL-004", f"flow rule {number} leads to receive queue {action['value']} of {queues}")

    def _del_flow_rule(self, p: np.void) -> None:
        for rule in Op.DEL_FLOW_RULE.message.several(p):
            if int(rule["rule_id"]) not in self._nic.rules.locations():
                self._find("RUL-005", f"flow rule {rule['rule_id']} is deleted, and is not there")

    def _add_mac_addr(self, p: np.void) -> None:
        for one in Op.ADD_MAC_ADDR.message.several(p):
            address = bytes(one["address"])
            if int(one["type"]) not in set(MacType):
                self._find("FLT-001", f"address {address.hex(':')} is of type {one['type']}")
            elif one["type"] == MacType.PRIMARY and (address[0] & 1 or not any(address)):
                self._find("FLT-002", f"the primary address is {address.hex(':')}")

    def _del_mac_addr(self, p: np.void) -> None:
        for one in Op.DEL_MAC_ADDR.message.several(p):
            address = bytes(one["address"]).hex(":")
            if address not in self._nic.filters.addresses:
                self._find("FLT-003", f"address {address} is deleted, and was not added")

    def _config_promiscuous_mode(self, p: np.void) -> None:
        if int(p["flags"]) & ~sum(Promiscuous):
            self._find("FLT-004", f"promiscuous modes {int(p['flags']):#x}")

    def _loopback(self, p: np.void) -> None:
        if p["enable"] > 1:
            self._find("FLT-005", f"loopback is set to {p['enable']}")


def _called(name: Name) -> str:
    return f"{name[0].name.lower().replace('_', ' ')} queue {name[1]}"


def _text(record: np.void) -> str:
    """The name of a queue by its settings, which the vport has."""
    return _called((QueueType(int(record["type"])), int(record["queue_id"])))


def _header(record: np.void) -> int:
    """Bytes of the header buffers of a buffer queue; 0: it has none."""
    return int(record["hdr_buffer_size"]) if int(record["qflags"]) & RxFlag.HEADER_SPLIT else 0


def _padding(record: np.void) -> Iterator[bool]:
    """Whether there is anything in the padding of a record, and of those in it."""
    for name in record.dtype.names or ():
        value = record[name]
        if name.startswith("pad"):
            yield bool(np.any(value))
        elif value.dtype.names:
            for one in value.reshape(-1) if value.shape else [value]:
                yield from _padding(one)
