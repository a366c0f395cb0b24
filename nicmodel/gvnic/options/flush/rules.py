"""What a driver has to keep that flushes a queue: docs/options.md."""

from __future__ import annotations

from nicmodel.observe.findings import Rule

#: Areas by the first part of a rule's name.
AREAS = {"FLU": "option: flush of one queue"}

RULES = (
    Rule(
        "FLU-001",
        "A flush is of an owner that the queue has, or of all.",
        "The device refuses it, and goes on writing to the buffers that it was to hand back.",
        "docs/options.md: Flush of one queue (owner)",
    ),
    Rule(
        "FLU-002",
        "Buffers stay mapped until the flush that calls them back is complete.",
        "Until then the device writes to them, where something else may be by now.",
        "docs/options.md: Flush of one queue",
    ),
)
