"""What a driver has to keep whose queues have buffers of several owners: docs/options.md."""

from __future__ import annotations

from nicmodel.observe.findings import Rule, Severity

#: Areas by the first part of a rule's name.
AREAS = {"OWN": "option: several owners behind one queue"}

_PAGE = "docs/options.md: Several owners behind one queue"

RULES = (
    Rule(
        "OWN-001",
        "A queue is told how many owners its buffers have before the first buffer is posted.",
        "The device refuses it: it has sorted buffers already as if they were all of one owner.",
        f"{_PAGE} (Switching it on)",
    ),
    Rule(
        "OWN-002",
        "A queue is told so once; it ends with the queue.",
        "The device refuses it.",
        f"{_PAGE} (Switching it on)",
    ),
    Rule(
        "OWN-003",
        "A queue's buffers have at least two owners, and no more than the device offers.",
        "The device refuses it.",
        f"{_PAGE} (Offer)",
    ),
    Rule(
        "OWN-004",
        "The owner in a buffer's descriptor is one that the queue has.",
        "The buffer comes back unused.",
        f"{_PAGE} (The owner of a buffer)",
    ),
    Rule(
        "OWN-005",
        "A flow rule names an owner that a queue of this device can have.",
        "Frames of the flow never find a buffer.",
        f"{_PAGE} (The owner of a frame)",
        Severity.WARNING,
    ),
    Rule(
        "OWN-006",
        "No owner's buffers fill the ring alone.",
        "The others' buffers have no room: all that comes for them is lost until this owner has received something.",
        f"{_PAGE} (What it needs from a driver)",
        Severity.WARNING,
    ),
)
