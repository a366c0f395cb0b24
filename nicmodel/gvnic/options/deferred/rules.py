"""What a driver has to keep that has payload wait on the NIC: docs/options.md."""

from __future__ import annotations

from nicmodel.observe.findings import Rule, Severity

#: Areas by the first part of a rule's name.
AREAS = {"DEF": "option: deferred placement"}

_PAGE = "docs/options.md: Deferred placement"
_ON, _REQUEST = f"{_PAGE} (Switching it on)", f"{_PAGE} (Placement request)"
_WARNING = Severity.WARNING

RULES = (
    Rule(
        "DEF-001",
        "A queue that is given a placement ring has header split.",
        "The device refuses it: no header would say whose the payload is.",
        _ON,
    ),
    Rule(
        "DEF-002",
        "A queue is given one placement ring, which ends with the queue.",
        "The device refuses a second.",
        _ON,
    ),
    Rule(
        "DEF-003",
        "A placement ring and its completion ring have a power of two of entries, up to 4096, and begin at a multiple "
        "of an entry's size.",
        "The device refuses them.",
        _ON,
    ),
    Rule(
        "DEF-004",
        "Both rings are the device's, as a whole: to read the one, to write the other; no ring shares their memory.",
        "Requests cannot be fetched, completions not be written, or one is taken for something else.",
        _ON,
    ),
    Rule(
        "DEF-005",
        "The placement completion ring is zero when the device gets it.",
        "An entry with a stale generation bit is taken for a completion.",
        f"{_PAGE} (Placement completion)",
    ),
    Rule(
        "DEF-006",
        "Of the command's flags only those that are defined are set.",
        "A later device may give the others a meaning.",
        _ON,
        _WARNING,
    ),
    Rule(
        "DEF-007",
        "The doorbell of a placement ring is not written once its queue has ended.",
        "It could be the ring of a new queue by then.",
        _ON,
    ),
    Rule(
        "DEF-008",
        "The doorbell of a placement ring holds an index in it.",
        "It has no effect: what was posted waits.",
        _REQUEST,
    ),
    Rule(
        "DEF-009",
        "A doorbell posts no more requests than the placement ring has room for: all but one entry.",
        "Requests that are not done are overwritten, or a full ring looks empty.",
        _REQUEST,
    ),
    Rule(
        "DEF-010",
        "A posted request stays as it is until its completion.",
        "The device may have fetched it before the change, or after.",
        _REQUEST,
    ),
    Rule(
        "DEF-011",
        "The reserved bits of a request are 0.",
        "A later device may give them a meaning.",
        _REQUEST,
        _WARNING,
    ),
    Rule(
        "DEF-012",
        "The descriptors of a request, 512 at most, all have the same handle.",
        "Nothing is placed, and the payload stays.",
        _REQUEST,
    ),
    Rule(
        "DEF-013",
        "A request is for a payload that a completion of the same queue has told of, and that no other has ended or is "
        "about to.",
        "Nothing is placed; the handle may be another payload's one day.",
        f"{_PAGE} (Placement completion)",
    ),
    Rule(
        "DEF-014",
        "The pieces of a request are together as long as the payload.",
        "Nothing is placed, and the payload stays.",
        _REQUEST,
    ),
    Rule(
        "DEF-015",
        "Each piece of a request is the device's to write.",
        "Nothing is placed, and the payload stays.",
        f"{_PAGE} (Placement completion)",
    ),
    Rule(
        "DEF-016",
        "From request to completion a piece's memory is nothing else's: no other piece, no posted buffer, no ring.",
        "Payload is written over payload, over what comes next, or over descriptors.",
        f"{_PAGE} (Placement request)",
    ),
    Rule(
        "DEF-017",
        "TCP is given a header when its payload is placed, so that nothing acknowledges what still waits on the NIC.",
        "The peer does not send it again; if it is dropped for the time-out it is lost for good.",
        f"{_PAGE} (Timeout)",
    ),
)
