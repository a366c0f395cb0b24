"""What a profile says of deferred placement."""

from __future__ import annotations

from dataclasses import dataclass, field

from nicmodel.gvnic.options.deferred.state import MAX_NIC_PAGES, NIC_PAGE
from nicmodel.nic.setting import MAX_WAIT_USECS, SETTING, Range, Section, Setting


@dataclass(frozen=True)
class DeferredProfile:
    """Parameters of deferred placement.

    Attributes:
        deferred_bytes: bytes on the NIC for payload whose place the driver names later (docs/options.md); 0 takes
            deferred placement away.
        deferred_queue_bytes: how much of it one queue may use; 0: all.
        deferred_usecs: how long payload is kept, microseconds.
    """

    deferred_bytes: int = field(default=0, metadata={SETTING: Setting(
        Section.OWN, "Memory on the NIC in which payload waits until the driver says where it goes.", "BYTES",
        option="--deferred-placement", default="0, off",
        range=Range(
            NIC_PAGE, MAX_NIC_PAGES * NIC_PAGE,
            "{value} bytes for payload on the NIC: between {low} and {high:,}", or_none=True,
        ),
    )})  # fmt: skip
    deferred_queue_bytes: int = field(default=0, metadata={SETTING: Setting(
        Section.OWN, "How much of it one queue may use.", "BYTES",
        option="--deferred-queue", default="all", needs="deferred_bytes",
    )})  # fmt: skip
    deferred_usecs: int = field(default=100_000, metadata={SETTING: Setting(
        Section.OWN, "How long payload waits there before it is dropped.", "USECS", needs="deferred_bytes",
        range=Range(1, MAX_WAIT_USECS, "{value} µs: payload stays for {low} at least and {high} at most"),
    )})  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 <= self.deferred_queue_bytes <= self.deferred_bytes:
            raise ValueError(f"{self.deferred_queue_bytes} bytes on the NIC for a queue, {self.deferred_bytes} for all")

    @property
    def deferred_queue_budget(self) -> int:
        """The most bytes of payload that are kept for one queue."""
        return self.deferred_queue_bytes or self.deferred_bytes
