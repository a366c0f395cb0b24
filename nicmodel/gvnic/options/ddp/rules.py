"""What a driver has to keep that has NVMe/TCP data placed directly: docs/ddp.md."""

from __future__ import annotations

from nicmodel.observe.findings import Rule, Severity

#: Areas by the first part of a rule's name.
AREAS = {"DDP": "option: direct data placement"}

_OFFER, _COMMAND = "docs/ddp.md: What a driver does (Offer)", "docs/ddp.md: What a driver does (Command)"
_RESYNC = "docs/ddp.md: Loss and reordering"
_WARNING = Severity.WARNING

RULES = (
    Rule(
        "DDP-001",
        "The operation is one of those defined.",
        "The device refuses it.",
        _COMMAND,
    ),
    Rule(
        "DDP-002",
        "A flow's number is below what the device offers.",
        "The device refuses it.",
        _OFFER,
    ),
    Rule(
        "DDP-003",
        "A flow that is added has a number and addresses that no other has.",
        "The device refuses it: it could not tell whose frames it sees.",
        _COMMAND,
    ),
    Rule(
        "DDP-004",
        "Only digests that are defined are said to be in use.",
        "The device refuses the flow.",
        _COMMAND,
    ),
    Rule(
        "DDP-005",
        "Buffers, answers and the end are of a flow that was added and not deleted.",
        "The device refuses it; the driver has lost track of its connections.",
        _COMMAND,
    ),
    Rule(
        "DDP-006",
        "A command has one buffer at a time.",
        "The device refuses the second, and writes to the first.",
        _COMMAND,
    ),
    Rule(
        "DDP-007",
        "A buffer has 1 to 256 pieces, none of them empty, and less than 4 GiB.",
        "The device refuses it.",
        _COMMAND,
    ),
    Rule(
        "DDP-008",
        "The pieces of a buffer are the device's to write, from SET_UP to TEAR_DOWN.",
        "Data for it is not placed, or is written where something else may be by then.",
        _COMMAND,
    ),
    Rule(
        "DDP-009",
        "Until it is torn down a buffer's memory is nothing else's: no other piece, no posted receive buffer, no ring.",
        "Data is written over other data, or over descriptors.",
        _COMMAND,
    ),
    Rule(
        "DDP-010",
        "Only a buffer that was set up is torn down.",
        "The device refuses it; the driver has lost track of what the device may write to.",
        _COMMAND,
    ),
    Rule(
        "DDP-011",
        "No more buffers are set up than the device offers.",
        "The device refuses it.",
        _OFFER,
    ),
    Rule(
        "DDP-012",
        "RESYNC answers a request that the device has made and that was not answered yet.",
        "The device takes any sequence number that is still to come for the truth, and places by it.",
        _RESYNC,
    ),
    Rule(
        "DDP-013",
        "The answer is the first PDU at or after the sequence number that was asked about.",
        "An earlier one helps nobody: the device has passed it.",
        _RESYNC,
    ),
    Rule(
        "DDP-014",
        "Frames of a flow do not come to a queue with deferred placement.",
        "Nothing is placed directly there.",
        _COMMAND,
        _WARNING,
    ),
    Rule(
        "DDP-015",
        "Flows are deleted before the device is deconfigured.",
        "The connection goes on without knowing that nothing of it is placed any more.",
        _COMMAND,
        _WARNING,
    ),
)
