"""Faults of an idpf."""

from __future__ import annotations

from nicmodel.faults import kinds
from nicmodel.faults.fault import Fault

KINDS: dict[str, type[Fault]] = {
    name: kind for name, kind in kinds.KINDS.items() if name.split("-")[0] in ("wire", "irq", "dma", "device")
}
