"""What a profile says of direct data placement."""

from __future__ import annotations

from dataclasses import dataclass, field

from nicmodel.nic.setting import SETTING, Range, Section, Setting

MAX_DDP_FLOWS = 1024


@dataclass(frozen=True)
class DdpProfile:
    """Parameters of direct data placement.

    Attributes:
        ddp_flows: TCP flows whose NVMe/TCP data can be placed directly (docs/ddp.md); 0 takes that away.
    """

    ddp_flows: int = field(default=0, metadata={SETTING: Setting(
        Section.OWN, "NVMe/TCP flows whose data the NIC can place directly.", "N", default="0, off",
        range=Range(0, MAX_DDP_FLOWS, "{value} flows: data of {low} to {high} can be placed directly"),
    )})  # fmt: skip
