"""RSS and flow rules as the mailbox's messages say them; what they set is any NIC's (`nicmodel.nic.steering`)."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.virtchnl import Protocol, RuleStatus
from nicmodel.nic import steering
from nicmodel.nic.state import State
from nicmodel.packet.match import RULE, FlowType
from nicmodel.packet.rss import HashType

#: All that RXHASH stands for; no message of Linux's chooses among them.
_HASH_TYPES = (
    HashType.IPV4 | HashType.TCPV4 | HashType.UDPV4 | HashType.IPV6 | HashType.TCPV6 | HashType.UDPV6
)  # fmt: skip

#: The flow type of a rule by its two headers. Linux 7.3 offers no others (idpf_ethtool.c, idpf_add_flow_steer).
_FLOW_TYPES: dict[tuple[int, ...], FlowType] = {
    (Protocol.IPV4, Protocol.TCP): FlowType.TCPV4,
    (Protocol.IPV4, Protocol.UDP): FlowType.UDPV4,
}
#: Where in an IPv4 header the addresses are.
_SOURCE, _DESTINATION = slice(12, 16), slice(16, 20)


class Rss(steering.Rss):
    """RSS; without a table from the driver all frames go to the first queue."""

    def __init__(self, state: State) -> None:
        super().__init__(state, _HASH_TYPES)


class RuleError(Exception):
    """A rule that cannot be: what the reply says of it, and why for the log."""

    def __init__(self, status: RuleStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class FlowRules(steering.FlowRules):
    """Flow rules; a rule's location is the number that the driver gives it."""

    def install(self, theirs: np.void, queues: int) -> None:
        """Install or replace a rule.

        Args:
            theirs: a `FLOW_RULE`.
            queues: how many receive queues there are.

        Raises:
            RuleError: it cannot be.
        """
        rule = translate(theirs, queues)
        location = int(theirs["rule_id"])
        if location >= self.capacity:
            raise RuleError(RuleStatus.NO_RESOURCE, f"rule {location} of {self.capacity}")
        self.add(location, rule)


def translate(theirs: np.void, queues: int) -> np.ndarray[Any, Any]:
    """A driver's `FLOW_RULE` as the packet path matches it: a `RULE`, shape (1,).

    Args:
        theirs: the driver's.
        queues: how many receive queues there are.

    Raises:
        RuleError: it asks for something that this device does not do.
    """
    headers = theirs["headers"][: min(int(theirs["num_headers"]), v.MAX_HEADERS)]
    actions = theirs["actions"][: min(int(theirs["num_actions"]), v.MAX_ACTIONS)]
    flow_type = _FLOW_TYPES.get(tuple(headers["type"].tolist()))
    if flow_type is None or theirs["tunnel_level"]:
        raise RuleError(RuleStatus.FLOW_TYPE_NOT_SUPPORTED, f"headers {headers['type'].tolist()}")
    if len(actions) != 1 or actions[0]["type"] != v.ACTION_QUEUE:
        raise RuleError(RuleStatus.ACTION_NOT_SUPPORTED, f"actions {actions['type'].tolist()}")
    queue = int(actions[0]["value"])
    if queue >= queues:
        raise RuleError(RuleStatus.ACTION_NOT_SUPPORTED, f"rule to queue {queue} of {queues}")
    rule = np.zeros(1, RULE)
    rule["flow_type"] = flow_type
    rule["action"] = queue
    for suffix, part in (("", "spec"), ("_mask", "mask")):
        network, transport = bytes(headers[0][part]), bytes(headers[1][part])
        if suffix and (any(network[:12]) or any(network[20:]) or any(transport[4:])):
            raise RuleError(RuleStatus.KEY_NOT_SUPPORTED, "a rule about more than addresses and ports")
        for name, place in (("source", _SOURCE), ("destination", _DESTINATION)):
            rule[f"{name}{suffix}"][0, :4] = np.frombuffer(network[place], np.uint8)
        rule[f"source_port{suffix}"], rule[f"destination_port{suffix}"] = struct.unpack_from(">HH", transport)
    return rule
