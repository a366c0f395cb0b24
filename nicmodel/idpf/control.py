"""The control plane: what each message of the mailbox does.

There is one vport. What messages say of its queues is in `nicmodel.idpf.queues`.

Sources: Linux drivers/net/ethernet/intel/idpf/idpf_virtchnl.c; OASIS idpf, Control Plane.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from nicmodel.idpf import ptypes
from nicmodel.idpf import registers as r
from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.clock import INCREMENT, MAX_ADJUSTMENT, Clock
from nicmodel.idpf.descriptors import RXDID, TxType
from nicmodel.idpf.filters import Filters
from nicmodel.idpf.mailbox import VECTOR, Mailbox
from nicmodel.idpf.profile import LINUX_OVERHEAD, Profile
from nicmodel.idpf.queues import Name, Queues
from nicmodel.idpf.registers import Register
from nicmodel.idpf.state import TX_LATCHES, State
from nicmodel.idpf.steering import FlowRules, Rss, RuleError
from nicmodel.idpf.virtchnl import (
    Checksum,
    Coalescing,
    EventCode,
    Flow,
    HeaderSplit,
    Op,
    Other,
    Promiscuous,
    QueueModel,
    QueueType,
    Result,
    RuleStatus,
    Segmentation,
    VportFlag,
    require,
)
from nicmodel.nic.ingress import Ingress
from nicmodel.nic.port import Port
from nicmodel.nic.state import Drop
from nicmodel.nic.steering import NoSuchRuleError
from nicmodel.packet.rss import HashType

log = logging.getLogger(__name__)

#: The only vport. Linux's path for errors of address filters indexes an array by it.
VPORT = 0
#: Bytes of headers that the device finds its way through, and pieces of a packet, with which Linux never linearises.
_MAX_HEADER = 255
MAX_PIECES = 64

_CHECKSUMS = sum(Checksum)
_SEGMENTATION = sum(Segmentation)
_FLOWS = sum(Flow)
_HEADER_SPLIT = sum(HeaderSplit)
_COALESCING = sum(Coalescing)
_PTP = sum(v.Ptp)

#: A driver's hash types, and those of the packet path. SCTP is hashed as other IP is.
_HASHED = {one: HashType[str(one.name)] for one in Flow if one.name in HashType.__members__}

#: Fields of `VPORT_STATS` that count.
_COUNTS = [name for name in v.VPORT_STATS.names or () if name not in ("vport_id", "pad")]

#: Where the tails of queues of each type are.
_TAILS: dict[QueueType, Register] = {
    QueueType.TX: r.TX_TAIL,
    QueueType.RX: r.RX_TAIL,
    QueueType.TX_COMPLETION: r.TX_COMPLETION_TAIL,
    QueueType.RX_BUFFER: r.RX_BUFFER_TAIL,
}


class Controlled(Protocol):
    """A NIC, as far as messages act on it."""

    profile: Profile
    state: State
    queues: Queues
    mailbox: Mailbox
    rss: Rss
    rules: FlowRules
    filters: Filters
    port: Port
    ingress: Ingress[State]
    clock_of_device: Clock

    @property
    def link_up(self) -> bool:
        """Whether frames pass."""

    def function_reset(self) -> None:
        """All is as after power-on but the configuration space."""


class ControlPlane:
    """Executes messages (`nicmodel.idpf.mailbox.Executor`).

    Args:
        nic: what they act on.

    Attributes:
        vport: whether the driver has created the vport.
        up: whether it has enabled it, and so is told of the link.
    """

    def __init__(self, nic: Controlled) -> None:
        self.vport = self.up = False
        self._nic = nic
        self._profile = nic.profile
        self._queues = nic.queues
        #: The counters when the vport was created: its own begin with 0.
        self._before = np.zeros((), v.VPORT_STATS)
        #: What executes each message: the method of its name.
        self._handlers: dict[Op, Callable[[np.void], bytes | None]] = {
            op: getattr(self, f"_{op.name.lower()}") for op in Op if op is not Op.EVENT
        }

    def reset(self) -> None:
        """As after power-on."""
        self.vport = self.up = False
        self._nic.filters.reset()
        self._nic.port.loop = None
        self._nic.state.latches[:] = 0

    def execute(self, op: Op, payload: np.void) -> bytes | None:
        """See `nicmodel.idpf.mailbox.Executor`."""
        names = payload.dtype.names or ()
        if "vport_id" in names and op is not Op.CREATE_VPORT:
            known = self.vport and payload["vport_id"] == VPORT
            require(known, Result.INVALID, f"there is no vport {payload['vport_id']}")
        return self._handlers[op](payload)

    def executed(self, op: Op) -> None:
        """See `nicmodel.idpf.mailbox.Executor`.

        Linux takes the link for down whenever it has enabled the vport, until it is told. Told before, it has no
        interface to apply it to, and fails (idpf_handle_event_link).
        """
        if op is Op.ENABLE_VPORT:
            self._tell_link()

    def link_changed(self) -> None:
        """The link has come or gone."""
        if self.up:
            self._tell_link()
            self._nic.mailbox.deliver()

    def _tell_link(self) -> None:
        up = self._nic.link_up
        speed = self._profile.link_speed if up else 0
        event = np.array((EventCode.LINK_CHANGE, speed, VPORT, int(up), (0, 0, 0)), v.EVENT)
        self._nic.mailbox.post(Op.EVENT, Result.OK, 0, event.tobytes())

    # The device as a whole.

    def _version(self, p: np.void) -> bytes:
        return np.array((v.VERSION_MAJOR, v.VERSION_MINOR), v.VERSION).tobytes()

    def _get_caps(self, p: np.void) -> bytes:
        profile = self._profile
        caps = np.zeros((), v.CAPABILITIES)
        caps["csum_caps"] = _CHECKSUMS
        caps["seg_caps"] = _SEGMENTATION
        caps["hsplit_caps"] = _HEADER_SPLIT if profile.header_split else 0
        # Linux counts merged segments by what is behind the header (idpf_rx_rsc).
        caps["rsc_caps"] = _COALESCING if profile.header_split else 0
        caps["rss_caps"] = _FLOWS
        others = Other.MAC_FILTER | Other.PROMISCUOUS | Other.LOOPBACK | Other.PTP
        caps["other_caps"] = others | Other.FLOW_STEERING if profile.max_flow_rules else others
        caps["mailbox_dyn_ctl"] = r.MAILBOX_DYN_CTL.offset
        caps["mailbox_vector_id"] = VECTOR
        caps["num_allocated_vectors"] = profile.vectors
        caps["max_rx_q"], caps["max_tx_q"] = profile.queues, profile.tx_queues
        caps["max_rx_bufq"], caps["max_tx_complq"] = profile.buffer_queues, profile.tx_queues
        caps["max_vports"] = caps["default_num_vports"] = 1
        caps["max_tx_hdr_size"] = _MAX_HEADER
        caps["max_sg_bufs_per_tx_pkt"] = MAX_PIECES
        return caps.tobytes()

    def _alloc_vectors(self, p: np.void) -> bytes:
        wanted, most = int(p["num_vectors"]), self._profile.vectors - 1
        require(0 < wanted <= most, Result.NO_SPACE, f"{wanted} vectors, {most} are left")
        answer = p.copy()
        answer["num_vchunks"] = 1
        first = VECTOR + 1
        chunk = np.zeros((), v.VECTOR_CHUNK)
        chunk["start_vector_id"], chunk["num_vectors"] = first, wanted
        chunk["dynctl_reg_start"], chunk["dynctl_reg_spacing"] = r.QUEUE_DYN_CTL.offset, r.SPACING
        chunk["itrn_reg_start"], chunk["itrn_reg_spacing"] = r.ITR0.offset, r.SPACING
        chunk["itrn_index_spacing"] = r.ITR1.offset - r.ITR0.offset
        return answer.tobytes() + chunk.tobytes()

    def _dealloc_vectors(self, p: np.void) -> None:
        """They are there again for the next who asks."""

    def _get_ptype_info(self, p: np.void) -> bytes:
        return ptypes.answer(int(p["start_ptype_id"]), int(p["num_ptypes"]))

    def _reset_vf(self, p: np.void) -> None:
        self._nic.function_reset()

    # The vport.

    def _create_vport(self, p: np.void) -> bytes:
        require(not self.vport, Result.NO_SPACE, "there is a vport, and no second one")
        models = int(p["txq_model"]), int(p["rxq_model"])
        require(models == (QueueModel.SPLIT,) * 2, Result.INVALID, "there is no queue model but the split one")
        tx, rx = int(p["num_tx_q"]), int(p["num_rx_q"])
        counts = self._counts(min(tx, self._profile.tx_queues), min(rx, self._profile.queues))
        require(tx > 0 and rx > 0, Result.INVALID, f"a vport of {tx} transmit and {rx} receive queues")
        profile = self._profile
        answer = np.zeros((), v.CREATE_VPORT)
        answer["vport_type"], answer["vport_index"] = p["vport_type"], p["vport_index"]
        answer["txq_model"] = answer["rxq_model"] = QueueModel.SPLIT
        answer["num_tx_q"], answer["num_tx_complq"] = counts[QueueType.TX], counts[QueueType.TX_COMPLETION]
        answer["num_rx_q"], answer["num_rx_bufq"] = counts[QueueType.RX], counts[QueueType.RX_BUFFER]
        answer["max_mtu"] = profile.max_mtu + LINUX_OVERHEAD
        answer["vport_id"] = VPORT
        answer["default_mac_addr"] = np.frombuffer(profile.mac, np.uint8)
        answer["rx_desc_ids"] = 1 << RXDID
        answer["tx_desc_ids"] = sum(1 << kind for kind in TxType)
        answer["vport_flags"] = VportFlag.UPLINK_PORT
        if profile.max_flow_rules:
            answer["vport_flags"] = VportFlag.UPLINK_PORT | VportFlag.FLOW_STEERING
            answer["sideband_flow_caps"] = Flow.TCPV4 | Flow.UDPV4
            answer["sideband_flow_actions"] = v.ACTION_QUEUE
            answer["flow_steer_max_rules"] = profile.max_flow_rules
        answer["rss_key_size"], answer["rss_lut_size"] = v.RSS_KEY_SIZE, v.RSS_LUT_SIZE
        answer["rx_split_pos"] = _HEADER_SPLIT if profile.header_split else 0
        chunks = self._chunks(counts)
        answer["num_chunks"] = len(chunks)
        self.vport = True
        self._before = self._totals()
        self._queues.grant(counts)
        return answer.tobytes() + chunks.tobytes()

    def _destroy_vport(self, p: np.void) -> None:
        self._queues.reset()
        self._nic.rules.reset()
        self._nic.rss.reset()
        self.reset()

    def _enable_vport(self, p: np.void) -> None:
        self.up = True

    def _disable_vport(self, p: np.void) -> None:
        self.up = False

    def _get_stats(self, p: np.void) -> bytes:
        stats = self._totals()
        for name in _COUNTS:
            stats[name] -= self._before[name]
        return stats.tobytes()

    def _totals(self) -> np.ndarray[Any, np.dtype[np.void]]:
        """The counters since the server's start."""
        state = self._nic.state
        device, drops = state.device[0], state.drops[:, Drop.HELD + 1 :]
        stats = np.zeros((), v.VPORT_STATS)
        stats["vport_id"] = VPORT
        rx, tx = state.rx, state.tx
        stats["rx_bytes"], stats["tx_bytes"] = rx["bytes"].sum(), tx["bytes"].sum()
        for name in ("rx_multicast", "rx_broadcast", "tx_multicast", "tx_broadcast"):
            stats[name] = device[name]
        stats["rx_unicast"] = rx["frames"].sum() - device["rx_multicast"] - device["rx_broadcast"]
        stats["tx_unicast"] = tx["segments"].sum() - device["tx_multicast"] - device["tx_broadcast"]
        stats["rx_discards"] = drops[: len(rx)].sum()
        stats["tx_discards"] = drops[len(rx) : -1].sum()
        return stats

    # Queues.

    def _counts(self, tx: int, rx: int) -> dict[QueueType, int]:
        """How many queues of each type go with so many transmit and receive queues."""
        return {QueueType.TX: tx, QueueType.RX: rx, QueueType.TX_COMPLETION: tx, QueueType.RX_BUFFER: 2 * rx}

    def _chunks(self, counts: dict[QueueType, int]) -> np.ndarray[Any, np.dtype[np.void]]:
        """Identifiers and tails; one chunk for each type, as Linux takes several in the opposite order."""
        found = np.zeros(len(counts), v.REGISTER_CHUNK)
        for chunk, (kind, count) in zip(found, counts.items(), strict=True):
            chunk["type"], chunk["num_queues"] = kind, count
            chunk["qtail_reg_start"], chunk["qtail_reg_spacing"] = _TAILS[kind].offset, r.SPACING
        return found

    def _add_queues(self, p: np.void) -> bytes:
        tx, rx = int(p["num_tx_q"]), int(p["num_rx_q"])
        wanted = {
            QueueType.TX: tx,
            QueueType.RX: rx,
            QueueType.TX_COMPLETION: int(p["num_tx_complq"]),
            QueueType.RX_BUFFER: int(p["num_rx_bufq"]),
        }
        profile = self._profile
        fits = 0 < tx <= profile.tx_queues and 0 < rx <= profile.queues
        require(fits, Result.NO_SPACE, f"{tx} transmit and {rx} receive queues")
        fits = wanted[QueueType.TX_COMPLETION] <= profile.tx_queues
        require(fits and wanted[QueueType.RX_BUFFER] <= profile.buffer_queues, Result.NO_SPACE, "too many queues")
        require(not any(self._queues.granted.values()), Result.BAD_SEQUENCE, "there are queues; delete them before")
        chunks = self._chunks(wanted)
        answer = p.copy()
        answer["num_chunks"] = len(chunks)
        self._queues.grant(wanted)
        return answer.tobytes() + chunks.tobytes()

    def _del_queues(self, p: np.void) -> None:
        names = self._names(Op.DEL_QUEUES, p)
        every = sum(self._queues.granted.values())
        require(len(names) == every, Result.INVALID, f"{len(names)} of the vport's {every} queues")
        self._queues.disable([name for name in names if name in self._queues.enabled])
        self._queues.grant(dict.fromkeys(QueueType, 0))

    def _config_tx_queues(self, p: np.void) -> None:
        self._queues.configure_tx(Op.CONFIG_TX_QUEUES.message.several(p))

    def _config_rx_queues(self, p: np.void) -> None:
        self._queues.configure_rx(Op.CONFIG_RX_QUEUES.message.several(p))

    def _enable_queues(self, p: np.void) -> None:
        self._queues.enable(self._names(Op.ENABLE_QUEUES, p))

    def _disable_queues(self, p: np.void) -> None:
        self._queues.disable(self._names(Op.DISABLE_QUEUES, p))

    def _names(self, op: Op, p: np.void) -> list[Name]:
        """The queues that a message names, each once, however often that is."""
        names: dict[Name, None] = {}
        for chunk in op.message.several(p):
            first, count = int(chunk["start_queue_id"]), int(chunk["num_queues"])
            if count:
                kind, last = self._queues.check(int(chunk["type"]), first + count - 1)
                names.update(dict.fromkeys((kind, number) for number in range(first, last + 1)))
        return list(names)

    def _map_queue_vector(self, p: np.void) -> None:
        for one in Op.MAP_QUEUE_VECTOR.message.several(p):
            name = self._queues.check(int(one["queue_type"]), int(one["queue_id"]))
            self._queues.map(name, int(one["vector_id"]), int(one["itr_idx"]))

    def _unmap_queue_vector(self, p: np.void) -> None:
        for one in Op.UNMAP_QUEUE_VECTOR.message.several(p):
            self._queues.unmap(self._queues.check(int(one["queue_type"]), int(one["queue_id"])))

    # Steering.

    def _get_rss_key(self, p: np.void) -> bytes:
        key = self._nic.rss.key
        return np.array((VPORT, len(key), 0), v.RSS_KEY).tobytes() + key

    def _set_rss_key(self, p: np.void) -> None:
        self._nic.rss.set_key(Op.SET_RSS_KEY.message.several(p).tobytes())

    def _get_rss_lut(self, p: np.void) -> bytes:
        table = self._nic.rss.table.astype("<u4")
        return np.array((VPORT, 0, len(table), 0), v.RSS_LUT).tobytes() + table.tobytes()

    def _set_rss_lut(self, p: np.void) -> None:
        require(p["lut_entries_start"] == 0, Result.INVALID, "a part of a table")
        self._nic.rss.set_table(Op.SET_RSS_LUT.message.several(p))

    def _get_rss_hash(self, p: np.void) -> bytes:
        return np.array((_FLOWS, VPORT, 0), v.RSS_HASH).tobytes()

    def _set_rss_hash(self, p: np.void) -> None:
        """Flows that are not known have no hash. A message that names no others changes nothing: DPDK asks for the bits
        of another NIC (IDPF_DEFAULT_RSS_HASH_EXPANDED), and says that no device takes notice (idpf_config_rss_hf).
        """
        asked = Flow(int(p["ptype_groups"]) & _FLOWS)
        if p["ptype_groups"] and not asked:
            log.warning("message SET_RSS_HASH: no flow is known of those that it names: %#x", p["ptype_groups"])
            return
        self._nic.rss.set_hash_types(HashType(sum(ours for theirs, ours in _HASHED.items() if theirs & asked)))

    def _add_flow_rule(self, p: np.void) -> bytes:
        queues = self._queues.granted[QueueType.RX]
        return self._each_rule(Op.ADD_FLOW_RULE, p, lambda rule: self._nic.rules.install(rule, queues))

    def _del_flow_rule(self, p: np.void) -> bytes:
        return self._each_rule(Op.DEL_FLOW_RULE, p, lambda rule: self._nic.rules.delete(int(rule["rule_id"])))

    def _each_rule(self, op: Op, p: np.void, do: Callable[[np.void], None]) -> bytes:
        rules = op.message.several(p).copy()
        for rule in rules:
            try:
                do(rule)
                rule["status"] = RuleStatus.SUCCESS
            except RuleError as error:
                rule["status"] = error.status
                log.warning("message %s: %s: %s", op.name, error.status.name, error)
            except NoSuchRuleError as error:
                rule["status"] = RuleStatus.NOT_ADDED
                log.warning("message %s: %s", op.name, error)
        head = np.array((VPORT, len(rules)), v.FLOW_RULES)
        return head.tobytes() + rules.tobytes()

    # The clock, and stamps of what was sent.

    def _ptp_get_caps(self, p: np.void) -> bytes:
        caps = np.zeros((), v.PTP_CAPS)
        caps["caps"] = _PTP & int(p["caps"])
        caps["max_adj"], caps["base_incval"] = MAX_ADJUSTMENT, INCREMENT
        caps["peer_mbx_q_id"] = v.NO_PEER
        return caps.tobytes()

    def _ptp_get_dev_clk_time(self, p: np.void) -> bytes:
        return np.array((self._nic.clock_of_device.now(), 0), v.CLOCK_TIME).tobytes()

    def _ptp_set_dev_clk_time(self, p: np.void) -> None:
        self._nic.clock_of_device.set(int(p["dev_time_ns"]))

    def _ptp_adj_dev_clk_fine(self, p: np.void) -> None:
        increment = int(p["incval"])
        fits = abs(increment - INCREMENT) * 1_000_000_000 <= MAX_ADJUSTMENT * INCREMENT
        require(fits, Result.OUT_OF_RANGE, f"an increment of {increment}, where it is {INCREMENT} at first")
        self._nic.clock_of_device.set_increment(increment)

    def _ptp_adj_dev_clk_time(self, p: np.void) -> None:
        self._nic.clock_of_device.adjust(int(p["delta"]))

    def _ptp_get_vport_tx_tstamp_caps(self, p: np.void) -> bytes:
        latches = np.zeros(TX_LATCHES, v.TX_LATCH_CAP)
        latches["index"] = np.arange(TX_LATCHES)
        # Nanoseconds begin with the lowest bit. Linux takes 32 bits of them.
        head = np.array((VPORT, TX_LATCHES, 0, 31, 0), v.TX_LATCH_CAPS)
        return head.tobytes() + latches.tobytes()

    def _ptp_get_vport_tx_tstamp(self, p: np.void) -> bytes:
        op, held = Op.PTP_GET_VPORT_TX_TSTAMP, self._nic.state.latches
        latches = op.message.several(p).copy()
        indices = latches["index"].astype(np.intp)
        require(bool(np.all(indices < TX_LATCHES)), Result.OUT_OF_RANGE, f"there are {TX_LATCHES} latches")
        latches["tstamp"], latches["valid"] = held["time"][indices], held["full"][indices]
        held["full"][indices] = 0
        time = self._nic.clock_of_device.now() if p["with_time"] else 0
        head = np.array((VPORT, len(latches), p["with_time"], 0, time), v.TX_LATCHES)
        return head.tobytes() + latches.tobytes()

    # Which frames are the vport's, and where those go that it sends.

    def _add_mac_addr(self, p: np.void) -> None:
        self._nic.filters.add(_addresses(Op.ADD_MAC_ADDR, p))

    def _del_mac_addr(self, p: np.void) -> None:
        self._nic.filters.delete(_addresses(Op.DEL_MAC_ADDR, p))

    def _config_promiscuous_mode(self, p: np.void) -> None:
        self._nic.filters.set_mode(Promiscuous(int(p["flags"]) & sum(Promiscuous)))

    def _loopback(self, p: np.void) -> None:
        self._nic.port.loop = self._nic.ingress.deliver if p["enable"] else None


def _addresses(op: Op, p: np.void) -> list[bytes]:
    return [bytes(one["address"]) for one in op.message.several(p)]
