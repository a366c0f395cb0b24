"""What a profile says of the flush of one queue."""

from __future__ import annotations

from dataclasses import dataclass, field

from nicmodel.nic.setting import SETTING, Section, Setting


@dataclass(frozen=True)
class FlushProfile:
    """Parameters of the flush of one queue.

    Attributes:
        queue_flush: a receive queue hands its buffers back on command, without being destroyed (docs/options.md).
    """

    queue_flush: bool = field(default=False, metadata={SETTING: Setting(
        Section.OWN, "A receive queue hands its buffers back on command.",
    )})  # fmt: skip
