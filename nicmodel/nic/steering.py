"""RSS and flow rules as a personality's commands set them; the packet path reads the arrays in `State`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nicmodel.nic.state import State
from nicmodel.packet.match import index_rules
from nicmodel.packet.rss import KEY_SIZE, HashType, toeplitz_table

#: Key until the driver gives one; the one of Microsoft's verification suite, which many NICs start with.
DEFAULT_KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")


class SteeringError(Exception):
    """A setting that cannot be."""


class NoSuchLocationError(SteeringError):
    """The table of rules has no such location."""


class NoSuchRuleError(SteeringError):
    """There is no rule at a location."""


class Rss:
    """Hash key, hash types and indirection table.

    Until the driver sets a table, the device spreads over the queues that exist.

    Args:
        state: the NIC's.
        default: what is hashed until the driver says.

    Attributes:
        key: the hash key.
        hash_types: what is hashed.
        configured: whether the driver has set a table.
    """

    def __init__(self, state: State, default: HashType) -> None:
        self._state = state
        self._default = default
        self.key = b""
        self.reset()

    def reset(self) -> None:
        """The device's own default."""
        self.set_key(DEFAULT_KEY)
        self.set_hash_types(self._default)
        self.configured = False
        self.spread(1)

    def set_key(self, key: bytes) -> None:
        """Take a new hash key."""
        if len(key) != KEY_SIZE:
            raise SteeringError(f"RSS key of {len(key)} bytes, not {KEY_SIZE}")
        if key == self.key:
            return
        self.key = key
        self._state.hash_table[:] = toeplitz_table(np.frombuffer(key, np.uint8))

    def set_hash_types(self, types: HashType) -> None:
        """Choose what is hashed."""
        self.hash_types = types
        self._state.device["hash_types"] = int(types)

    def switch_off(self) -> None:
        """Nothing is hashed, and all that no rule steers goes to the first queue."""
        self.set_hash_types(HashType.NONE)
        self.set_table(np.zeros(1, np.int64))

    def set_table(self, table: NDArray[Any]) -> None:
        """Take a new indirection table of queue numbers; they may name queues that do not exist yet."""
        size, most = len(table), len(self._state.lut)
        if not 0 < size <= most:
            raise SteeringError(f"RSS table of {size} entries, not of 1 to {most}")
        if (table >= len(self._state.rx)).any():
            raise SteeringError(f"RSS table names queue {table.max()}")
        self.configured = True
        self._set(table)

    def spread(self, queues: int) -> None:
        """Without a table from the driver: entry i is queue i mod `queues`."""
        if not self.configured:
            self._set(np.arange(len(self._state.lut)) % max(queues, 1))

    def _set(self, table: NDArray[Any]) -> None:
        self._state.lut[: len(table)] = table
        self._state.device["lut_size"] = len(table)

    @property
    def table(self) -> NDArray[np.int32]:
        """The indirection table."""
        return self._state.lut[: int(self._state.device["lut_size"][0])]


class FlowRules:
    """Installed n-tuple rules, each at a location. Of several that match a frame the lowest location counts.

    Args:
        state: the NIC's, whose `State.rules` has as many records as there are locations.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    @property
    def capacity(self) -> int:
        """Number of locations."""
        return len(self._state.rules)

    def __len__(self) -> int:
        return len(self.locations())

    def locations(self) -> list[int]:
        """Locations in use, ascending: the order in which they are matched."""
        found: list[int] = np.flatnonzero(self._state.rules["installed"]).tolist()
        return found

    def check(self, location: int, queue: int) -> None:
        """See that there may be a rule at `location` that sends frames to receive queue `queue`.

        Raises:
            NoSuchLocationError: there is no such location.
            SteeringError: there is no such queue.
        """
        if location >= self.capacity:
            raise NoSuchLocationError(f"rule location {location} of {self.capacity}")
        if queue >= len(self._state.rx):
            raise SteeringError(f"rule to queue {queue}")

    def add(self, location: int, rule: NDArray[np.void]) -> None:
        """Install or replace the rule at `location`.

        Args:
            location: which.
            rule: a `nicmodel.packet.match.RULE`, shape (1,), whose `hits` and `installed` do not matter.

        Raises:
            SteeringError: see `check`.
        """
        self.check(location, int(rule["action"][0]))
        entry = self._state.rules[location : location + 1]
        entry[:] = rule
        entry["hits"] = 0
        entry["installed"] = 1
        self._index()

    def delete(self, location: int) -> None:
        """Take the rule at `location` out.

        Raises:
            NoSuchRuleError: there is none.
        """
        if location >= self.capacity or not self._state.rules["installed"][location]:
            raise NoSuchRuleError(f"no rule at location {location}")
        self._state.rules[location : location + 1] = 0
        self._index()

    def reset(self) -> None:
        """Take all rules out."""
        self._state.rules[:] = 0
        self._index()

    def _index(self) -> None:
        state = self._state
        order = np.array(self.locations(), np.int32)
        state.device["rule_groups"] = index_rules(state.rules, order, state.rule_groups, state.rule_slots)
