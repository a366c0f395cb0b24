"""Runs a recording and tells the first call in which the NIC does something else than it did, in the words of a trace.

What a NIC does is what it answers, writes to guest memory, sends and raises in a call. In which order, and by how many
writes, makes no difference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nicmodel.nic import events
from nicmodel.nic.purpose import Purpose
from nicmodel.observe.findings import Finding
from nicmodel.observe.trace import Event, Tracer
from nicmodel.recording.call import Access, Call, Frame
from nicmodel.recording.file import Recording
from nicmodel.recording.replay import Model, Replay

#: Events of a trace that are told before a difference, and changes of one that are listed.
BEFORE, MOST_CHANGES = 10, 20
_NONE = "nothing"


@dataclass(frozen=True)
class Change:
    """One thing that is different.

    Attributes:
        what: its name: a field of an event, of a frame, or a place in memory.
        recorded: what it was.
        now: what it is.
    """

    what: str
    recorded: Any
    now: Any


@dataclass
class Difference:
    """The first call in which a NIC does something else than it did.

    Attributes:
        number: of the call, from 0 on.
        recorded: the call as it was.
        made: as it is.
        changes: what is different.
        before: the last events of a trace until then, and what was traced in the call itself.
    """

    number: int
    recorded: Call
    made: Call
    changes: list[Change] = field(default_factory=list)
    before: list[Event] = field(default_factory=list)


@dataclass
class Outcome:
    """What came of running a recording.

    Attributes:
        difference: the first one; None: there was none.
        findings: rules of the contract that the driver has broken, each with the number of the call.
        failures: exceptions that the NIC has survived, each with the number of the call.
        unknown: how many accesses read memory of which the recording does not say what was there, up to the difference.
        faults: the faults on demand that had struck up to the difference, which a replay is without.
        made: the calls as they are.
    """

    difference: Difference | None = None
    findings: list[tuple[int, Finding]] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    unknown: int = 0
    faults: set[str] = field(default_factory=set)
    made: list[Call] = field(default_factory=list)


def run(recording: Recording, model: Model, *, check: bool = False, keep: bool = False) -> Outcome:
    """Run a recording.

    Args:
        recording: the recording.
        model: the NIC to be made.
        check: watch its driver keep the contract.
        keep: keep all calls as they are now, and not only tell the first difference.

    Raises:
        RecordingError: it asks for what cannot be.
    """
    outcome = Outcome()
    with Replay(recording.header, model) as replay:
        checker = model.check(replay.nic, None) if check else None
        failures = _Failures(replay)
        for number, call in enumerate(recording.calls):
            made = replay.make(call)
            if outcome.difference is None:
                outcome.faults.update(call.faults)
                outcome.unknown += _unknown(call, made)
                if not same(call, made):
                    outcome.difference = Difference(number, call, made)
            if keep:
                outcome.made.append(made)
            outcome.failures += [(number, reason) for reason in failures.take()]
            if checker is not None and len(checker.findings) > len(outcome.findings):
                outcome.findings += [(number, one) for one in checker.findings[len(outcome.findings) :]]
    return outcome


def same(recorded: Call, made: Call) -> bool:
    """Whether a NIC has done the same in a call."""
    return not recorded.expected or (
        recorded.answer == made.answer
        and recorded.error == made.error
        and sorted(recorded.vectors) == sorted(made.vectors)
        and _frames(recorded) == _frames(made)
        and (recorded.writes == made.writes or merged(recorded.writes) == merged(made.writes))
    )


def merged(writes: Iterable[Access]) -> list[tuple[int, bytes]]:
    """What these writes, one after the other, leave in memory: pieces that do not touch, by address."""
    writes = list(writes)
    order = sorted(range(len(writes)), key=lambda at: writes[at].address)
    pieces: list[tuple[int, int, list[int]]] = []
    for at in order:
        start, end = writes[at].address, writes[at].address + len(writes[at].data)
        if pieces and start <= pieces[-1][1]:
            first, last, parts = pieces[-1]
            parts.append(at)
            pieces[-1] = (first, max(last, end), parts)
        else:
            pieces.append((start, end, [at]))
    found = []
    for start, end, parts in pieces:
        octets = bytearray(end - start)
        for at in sorted(parts):
            place = writes[at].address - start
            octets[place : place + len(writes[at].data)] = writes[at].data
        found.append((start, bytes(octets)))
    return found


def explain(recording: Recording, model: Model, difference: Difference, *, before: int = BEFORE) -> None:
    """Find out what a difference means, and what went before it.

    The recording runs twice more. The second time the bytes of then are put into guest memory before the trace looks at
    what was written, so that both are decoded by the same code.

    Args:
        recording: the recording.
        model: the NIC to be made.
        difference: what `run` has found; its `changes` and `before` are set.
        before: how many events of the trace are kept.
    """
    history, now = _traced(recording, model, difference, before, as_recorded=False)
    _, then = _traced(recording, model, difference, before, as_recorded=True)
    difference.before = [*history, *now]
    recorded, made = difference.recorded, difference.made
    changes = list(_events_changed(then, now))
    changes += _sent_changed(_frames(recorded), _frames(made))
    changes += _vectors_changed(recorded.vectors, made.vectors, difference)
    if not changes and recorded.answer != made.answer:
        changes.append(Change("answer", _hex(recorded.answer), _hex(made.answer)))
    if not changes:
        changes += _writes_changed(recorded, made, now)
    if recorded.error != made.error:
        changes.append(Change("error", recorded.error, made.error))
    difference.changes = changes


class _Failures:
    """Exceptions that a NIC survives, which it counts by what has failed."""

    def __init__(self, replay: Replay) -> None:
        self._counters = replay.nic.counters
        self._count = 0
        self._reasons: list[str] = []
        self._fail = replay.nic.diagnostics.fail
        replay.nic.diagnostics.fail = self._failed  # type: ignore[method-assign]

    def _failed(self, what: str, error: Exception) -> None:
        self._reasons.append(f"{what} failed: {error!r}")
        self._fail(what, error)

    def take(self) -> list[str]:
        """Those since the last call."""
        reasons, self._reasons = self._reasons, []
        return reasons


def _unknown(recorded: Call, made: Call) -> int:
    """How many accesses of a call read what it is not known to have read."""
    known = merged(recorded.reads)
    return sum(
        not any(start <= one.address and one.address + len(one.data) <= start + len(data) for start, data in known)
        for one in made.reads
        if one not in recorded.reads
    )


def _frames(call: Call) -> list[Frame]:
    return [frame for sent in call.sent for frame in sent.frames]


def _hex(data: bytes | None) -> str:
    return _NONE if data is None else data.hex()


# In the words of a trace.


def _traced(
    recording: Recording, model: Model, difference: Difference, before: int, *, as_recorded: bool
) -> tuple[list[Event], list[Event]]:
    """The last events before the call, and those of the call."""
    last: deque[Event] = deque(maxlen=before)
    with Replay(recording.header, model) as replay:
        current = False

        def put_back(_event: events.Event) -> None:
            if current:
                replay.overwrite(difference.recorded.writes)

        if as_recorded:  # before the trace's, which looks at memory
            replay.nic.diagnostics.watch(put_back)
        tracer = Tracer(replay.nic, replay)
        tracer.subscribe(last.append)
        told = replay.on_trace
        for call in recording.calls[: difference.number]:
            replay.make(call)
        history = list(last)
        found: list[Event] = []
        current = True
        last.clear()
        tracer.subscribe(found.append)

        def tell(event: str, **fields: Any) -> None:
            if event == "region_read" and as_recorded and difference.recorded.answer is not None:
                fields["data"] = difference.recorded.answer
            if told is not None:
                told(event, **fields)

        replay.on_trace = tell
        replay.make(difference.recorded)
    return history, [event for event in found if event["kind"] != "interrupt" or not as_recorded]


def _events_changed(then: list[Event], now: list[Event]) -> Iterator[Change]:
    """What is different in the first event that is."""
    left = [event for event in then if event["kind"] != "interrupt"]
    right = [event for event in now if event["kind"] != "interrupt"]
    for one, other in zip(left, right, strict=False):
        fields, others = dict(_flat(one)), dict(_flat(other))
        changed = [name for name in {**fields, **others} if fields.get(name) != others.get(name)]
        if changed:
            head = " ".join(str(other[name]) for name in ("kind", "command", "register", "queue") if name in other)
            for name in changed:
                yield Change(f"{head}: {name}", fields.get(name, _NONE), others.get(name, _NONE))
            return
    for one in left[len(right) :]:
        yield Change(one["kind"], _short(one), _NONE)
    for one in right[len(left) :]:
        yield Change(one["kind"], _NONE, _short(one))


def _flat(event: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of an event, those inside others with their whole path."""
    for name, value in event.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            for place, one in enumerate(value):
                yield from _flat(one, f"{path}[{place}].")
        elif name not in ("time", "nic"):
            yield path, value


def _short(event: Event) -> str:
    return " ".join(f"{name}={value}" for name, value in event.items() if name not in ("time", "nic", "kind"))


# Frames, interrupts, and what has no names.


def _sent_changed(then: list[Frame], now: list[Frame]) -> Iterator[Change]:
    for place, (one, other) in enumerate(zip(then, now, strict=False)):
        if one != other:
            fields, others = one.fields | _layers(one.data), other.fields | _layers(other.data)
            for name in {**fields, **others}:
                if fields.get(name) != others.get(name):
                    yield Change(f"frame {place} sent: {name}", fields.get(name, _NONE), others.get(name, _NONE))
            return
    if len(then) != len(now):
        yield Change("frames sent", len(then), len(now))


def _layers(data: bytes) -> dict[str, Any]:
    """A frame's fields by the names that scapy has for them, and its length."""
    from scapy.layers.l2 import Ether  # who finds no difference starts without it

    found: dict[str, Any] = {"length": len(data)}
    try:
        layer: Any = Ether(data)
        while layer:
            name = layer.name
            if name in ("Raw", "Padding"):
                found[name.lower()] = layer.load.hex()
            else:
                found |= {f"{name}.{one.name}": repr(layer.getfieldval(one.name)) for one in layer.fields_desc}
            layer = layer.payload
    except Exception:  # what a NIC sends may be anything
        found["bytes"] = data.hex()
    return found


def _vectors_changed(then: list[int], now: list[int], difference: Difference) -> Iterator[Change]:
    for vector in sorted({*then, *now}):
        if then.count(vector) != now.count(vector):
            named = [one.get("queue") or one.get("what") for one in difference.before if one.get("vector") == vector]
            about = f" ({named[-1]})" if named and named[-1] else ""
            yield Change(f"interrupts of vector {vector}{about}", then.count(vector), now.count(vector))


def _writes_changed(recorded: Call, made: Call, traced: list[Event]) -> Iterator[Change]:
    """Where memory is different, by what was written there."""
    commands = [event["command"] for event in traced if event["kind"] == "admin" and "command" in event]
    then, now = dict(merged(recorded.writes)), dict(merged(made.writes))
    for address in sorted({*then, *now}):
        one, other = then.get(address), now.get(address)
        if one == other:
            continue
        if one is None or other is None:
            about = _about(address, made.writes if one is None else recorded.writes, commands)
            yield Change(f"{about} at {address:#x}", _cut(one), _cut(other))
            continue
        place = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
        for written in (*recorded.writes, *made.writes):  # the whole of what was written there at once
            if written.address <= address + place < written.address + len(written.data) and len(written.data) <= 16:
                start = written.address - address
                one, other, place = one[start:][: len(written.data)], other[start:][: len(written.data)], 0
                address = written.address
                break
        about = _about(address + place, recorded.writes, commands)
        yield Change(f"{about} at {address + place:#x}", _cut(one[place:]), _cut(other[place:]))


def _about(address: int, writes: list[Access], commands: list[str]) -> str:
    """What was written at an address."""
    for start, data, purpose in writes:
        if start <= address < start + len(data):
            if purpose == Purpose.ANSWER and commands:
                return f"answer to {commands[-1]}"
            return Purpose(purpose).name.lower()
    return "memory"


def _cut(data: bytes | None) -> str:
    if data is None:
        return "not written"
    return data[:16].hex() + (f"… ({len(data)} bytes)" if len(data) > 16 else "")
