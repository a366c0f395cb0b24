"""What a profile says of several owners behind one queue."""

from __future__ import annotations

from dataclasses import dataclass, field

from nicmodel.gvnic.options.owners.state import MAX_OWNERS
from nicmodel.nic.setting import SETTING, Range, Section, Setting

#: More than any ring has.
MAX_OWNER_LOOKAHEAD = 65_535


@dataclass(frozen=True)
class OwnersProfile:
    """Parameters of several owners behind one queue.

    Attributes:
        owners: the most owners that the buffers of one receive queue may have (docs/options.md); 0 takes that away.
        owner_lookahead: buffers of such a queue that the device sorts by owner ahead of need.
    """

    owners: int = field(default=0, metadata={SETTING: Setting(
        Section.OWN, "How many owners the buffers of a receive queue may have; flow rules say which owner a flow has.",
        "N", default="0, off",
        range=Range(
            2, MAX_OWNERS, "{value} owners of a queue's buffers: between {low} and {high}, or 0 for one", or_none=True,
        ),
    )})  # fmt: skip
    owner_lookahead: int = field(default=1024, metadata={SETTING: Setting(
        Section.OWN, "How many buffers of such a queue the NIC sorts by owner before they are needed.", "N",
        needs="owners",
        range=Range(1, MAX_OWNER_LOOKAHEAD, "{value} buffers ahead: between {low} and {high} are possible"),
    )})  # fmt: skip
