"""What a driver does to its device, from a trace of a try, in terms by which two drivers can be compared.

A try is cut into parts, such as "load" and "command". What was asked of the device in each, in order, are acts:
commands with their fields, registers written. What happens too often to be told one by one is measured, as doorbells
for each 100 packets. The rest are traits: rules broken, steps taken, lines of the kernel's log.

Two tries of one driver are not the same to the last bit. So a driver is tried several times, and only what all its
tries have in common is compared: an act that all of them have, a field that is the same in all, a measure whose values
do not overlap with those of the other driver.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any, Self

from nicmodel.client.text import escaped

Plain = int | float | str | bool | None

#: Of the form that runs are saved in; grows when a field changes its meaning or goes away.
VERSION = 1
#: Events of a try that are kept; further ones are counted, and the try's measures are left out.
MOST_EVENTS = 500_000
#: Numbers from here on are addresses, keys and cookies. Sizes, counts and identifiers are below.
_ADDRESS = 1 << 20
#: Fields with more values than this, such as an RSS table, are told by how many there are.
_LONG = 16
#: Fields and registers that say who the driver is, or mean nothing: not what it does.
_IDLE = re.compile(r"address|version|reserved|padding|cookie|^driver$")
#: Measures need that many frames, or packets, to say anything.
_ENOUGH = 20
#: How far apart measures of traffic have to be to be told, as a share of the larger one.
_APART = 0.2
#: A command about no queue that says the same each time, and comes that often in a try, is a question that is asked in
#: its own time. Not its places are compared, but how often it comes: that has to differ by half, and by two.
_REPEATED, _OFTEN_APART, _OFTEN_LEAST = 4, 0.5, 2
#: A register that is written that often is a doorbell of commands, which tells no more than they do.
_DOORBELL = 8
#: Numbers in a kernel's log that are not the same twice: times, addresses, process numbers.
_CHANGING = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+")
_STAMP = re.compile(r"^(<\d+>)?\[ *[\d.]+\]( *\[ *[TC]\d+\])? ?")
_GOOD = ("PASSED", "OK")


@dataclass(frozen=True)
class Act:
    """Something that a driver asked of its device.

    Attributes:
        part: of the try.
        what: a command by name, or "write" and a register.
        queue: which queue it is about, such as ``rx3``; empty: none.
        fields: by name, those of a structure within as ``inner.name``.
    """

    part: str
    what: str
    queue: str = ""
    fields: Mapping[str, Plain] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        return f"{self.what} {self.queue}".rstrip()


@dataclass
class Run:
    """A try of a driver.

    Attributes:
        acts: in order.
        posted: buffers that receive queues were given, by what point, and by ring.
        measures: of traffic, by name.
        traits: sets of sentences, by what they are about.
        lost: events that came too fast, or were too many.
    """

    acts: list[Act] = field(default_factory=list)
    posted: dict[str, dict[str, int]] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    traits: dict[str, list[str]] = field(default_factory=dict)
    lost: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The run again.

        Raises:
            ValueError: it is none.
        """
        try:
            acts = [Act(str(one["part"]), str(one["what"]), str(one["queue"]), dict(one["fields"]))
                    for one in data["acts"]]  # fmt: skip
            return cls(
                acts,
                {
                    str(point): {str(ring): int(tail) for ring, tail in tails.items()}
                    for point, tails in data["posted"].items()
                },
                {str(name): float(value) for name, value in data["measures"].items()},
                {str(name): [str(one) for one in values] for name, values in data["traits"].items()},
                int(data["lost"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no run of a driver: {error}") from None


class Watcher:
    """Takes in the events of a trace as they come, and makes a run of them.

    Args:
        most: events that are kept.
    """

    def __init__(self, most: int = MOST_EVENTS) -> None:
        self._most = most
        self._acts: list[tuple[int, Act]] = []
        self._traffic: list[tuple[int, str, int]] = []
        self._tails: list[tuple[int, str, int]] = []
        self._read: set[str] = set()
        self._lost = 0

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in an event, as `nicmodel.observe.trace` makes it, or ``{"lost": N}``."""
        if "lost" in event:
            self._lost += int(event["lost"])
            return
        if len(self._acts) + len(self._traffic) + len(self._tails) >= self._most:
            self._lost += 1
            return
        time, kind, queue = int(event.get("time", 0)), event.get("kind"), str(event.get("queue") or "")
        if kind == "admin":
            self._acts.append((time, _command(event)))
        elif kind == "register" and event.get("access") == "write":
            self._write(time, event)
        elif kind == "register":
            self._read.add(str(event.get("register")))
        elif kind == "doorbell":
            self._doorbell(time, event, queue)
        elif kind == "interrupt" and event.get("what") != "management":
            self._traffic.append((time, "interrupt", 1))
        elif kind == "rx":
            verdict = str(event.get("verdict"))
            split = "split" if event.get("header") else "whole"
            self._traffic.append((time, f"rx {split if verdict == 'delivered' else verdict}", 1))
        elif kind == "tx":
            self._traffic.append((time, "tx", max(1, len(event.get("descriptors") or ()))))

    def _write(self, time: int, event: Mapping[str, Any]) -> None:
        register = str(event.get("register"))
        value = ",".join(event["flags"]) if event.get("flags") else event.get("value")
        if _IDLE.search(register):
            return
        fields = {} if isinstance(value, int) and value >= _ADDRESS else {"value": value}
        self._acts.append((time, Act("", f"write {register}", "", fields)))

    def _doorbell(self, time: int, event: Mapping[str, Any], queue: str) -> None:
        ring = queue or str(event.get("register") or "")
        if "tail" not in event:
            self._traffic.append((time, "interrupt enabled", 1))
            return
        if ring.startswith("tx"):
            self._traffic.append((time, "tx doorbell", 1))
        else:
            self._tails.append((time, ring, int(event["tail"])))

    def run(
        self, parts: Sequence[tuple[str, int]], begun: int, command: str, traits: Mapping[str, Collection[str]]
    ) -> Run:
        """What it comes to.

        Args:
            parts: their names, and when each ended, ns by the clock of the trace.
            begun: when the first one began.
            command: the part in which traffic is measured.
            traits: see `Run.traits`.
        """
        writes = Counter(act.what for _, act in self._acts if act.what.startswith("write "))
        bells = {what for what, times in writes.items() if times >= _DOORBELL}
        acts = [Act(part, act.what, act.queue, act.fields) for time, act in self._acts
                if act.what not in bells and time >= begun and (part := _part(parts, time))]  # fmt: skip
        counts: Counter[str] = Counter()
        for time, what, number in self._traffic:
            if _part(parts, time) == command:
                counts[what] += 1
                if what == "tx":
                    counts["tx descriptors"] += number
        first: dict[str, int] = {}
        up: dict[str, int] = {}
        for time, ring, tail in self._tails:
            first.setdefault(ring, tail)
            if (part := _part(parts, time)) in ("load", "up"):
                up[ring] = tail
            counts["rx doorbell"] += part == command
        posted = {"before the first doorbell": first, "when the interface is up": up}
        return Run(
            acts, posted, {} if self._lost else _measures(counts),
            {name: sorted(values) for name, values in traits.items()} | {"registers read": sorted(self._read)},
            self._lost,
        )  # fmt: skip


def _part(parts: Sequence[tuple[str, int]], time: int) -> str:
    """The part that a time falls into; empty if they are all over."""
    return next((name for name, ended in parts if time <= ended), "")


def _command(event: Mapping[str, Any]) -> Act:
    fields = dict(_flat(event.get("fields") or {}))
    what = str(event.get("command"))
    inner = (event.get("fields") or {}).get("inner_opcode")
    if isinstance(inner, str):
        what = inner
    if event.get("status") not in _GOOD:
        fields["status"] = str(event.get("status"))
    return Act("", what, str(event.get("queue") or ""), fields)


def _flat(data: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Plain]]:
    for name, value in data.items():
        if _IDLE.search(str(name)):
            continue
        path = f"{before}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        elif isinstance(value, (list, tuple)):
            if len(value) > _LONG:
                yield f"{path} (how many)", len(value)
            else:
                yield from _flat({str(number): one for number, one in enumerate(value)}, f"{path}.")
        elif not (isinstance(value, int) and abs(value) >= _ADDRESS):
            yield path, value


def _measures(counts: Mapping[str, int]) -> dict[str, float]:
    """Of traffic. What there was too little of for a share is left out."""
    received = sum(number for what, number in counts.items() if what.startswith("rx ") and what != "rx doorbell")
    sent = counts.get("tx", 0)
    found: dict[str, float] = {"frames received": received, "packets sent": sent}
    if received >= _ENOUGH:
        found["receive doorbells for each 100 frames"] = 100 * counts.get("rx doorbell", 0) / received
        found["frames of which the header was split off, percent"] = 100 * counts.get("rx split", 0) / received
    if sent >= _ENOUGH:
        found["transmit doorbells for each 100 packets"] = 100 * counts.get("tx doorbell", 0) / sent
        found["transmit descriptors for each 100 packets"] = 100 * counts.get("tx descriptors", 0) / sent
    if received + sent >= _ENOUGH:
        for what, name in (("interrupt", "interrupts"), ("interrupt enabled", "times that an interrupt was enabled")):
            found[f"{name} for each 100 frames and packets"] = 100 * counts.get(what, 0) / (received + sent)
    for what, number in counts.items():
        if what.startswith("rx ") and what not in ("rx doorbell", "rx split", "rx whole"):
            found[f"frames dropped: {what.removeprefix('rx ')}"] = number
    return found


def log_lines(log: Collection[str]) -> set[str]:
    """Lines of a kernel's log without what is never the same twice."""
    return {_CHANGING.sub("N", unstamped(line)).strip() for line in log} - {""}


def unstamped(line: str) -> str:
    """A line of a kernel's log without its level, its time and its task."""
    return _STAMP.sub("", line)


@dataclass(frozen=True)
class Difference:
    """Something in which the second driver differs from the first.

    Attributes:
        about: the part of the try, or the trait.
        sign: "+" the second has it alone, "-" the first, "~" both, but not the same.
        what: in a sentence, without a full stop; the queue that it is about is `queue`, and "{}" stands for it.
        queue: empty: none.
    """

    about: str
    sign: str
    what: str
    queue: str = ""


def differences(first: Sequence[Run], second: Sequence[Run]) -> list[Difference]:
    """In what two drivers differ, the gravest first.

    Args:
        first: tries of the one, one or more.
        second: of the other.
    """
    return [*_traits(first, second), *_acts(first, second), *_posted(first, second), *_measured(first, second)]


#: How grave a trait is, the gravest first; others come after them.
_GRAVE = ("outcome", "contract", "kernel complains")
_SAID = {
    "outcome": ("", ""), "contract": ("breaks ", "no longer breaks "), "kernel complains": ("", "no longer: "),
    "kernel log": ("", "no longer: "), "steps": ("", "not reached: "), "registers read": ("reads ", "does not read "),
}  # fmt: skip


def _traits(first: Sequence[Run], second: Sequence[Run]) -> Iterator[Difference]:
    names = {name for run in (*first, *second) for name in run.traits}
    for name in sorted(names, key=lambda name: (_GRAVE.index(name) if name in _GRAVE else len(_GRAVE), name)):
        ours = [set(run.traits.get(name, ())) for run in first]
        theirs = [set(run.traits.get(name, ())) for run in second]
        more, fewer = _SAID.get(name, ("", "no longer: "))
        for sign, said, mine, other in (("+", more, theirs, ours), ("-", fewer, ours, theirs)):
            # What every try of the one shows, and no try of the other.
            shown = {one for one in mine[0] if all(one in each for each in mine)}
            yield from (Difference(name, sign, f"{said}{one}") for one in sorted(shown.difference(*other)))


def _keys(acts: Sequence[Act]) -> list[tuple[str, str, str]]:
    return [(act.part, act.what, act.queue) for act in acts]


def _matches(first: Sequence[Act], second: Sequence[Act]) -> Iterator[tuple[int, int]]:
    """Places of acts that are the same but for their fields."""
    for block in SequenceMatcher(None, _keys(first), _keys(second), autojunk=False).get_matching_blocks():
        yield from ((block.a + number, block.b + number) for number in range(block.size))


def _common(runs: Sequence[Run]) -> list[Act]:
    """Acts that all tries have, in this order; of their fields those that are the same in all."""
    acts = list(runs[0].acts)
    for run in runs[1:]:
        acts = [
            Act(acts[a].part, acts[a].what, acts[a].queue, dict(acts[a].fields.items() & run.acts[b].fields.items()))
            for a, b in _matches(acts, run.acts)
        ]
    return acts


def _often(runs: Sequence[Run]) -> dict[tuple[str, str, str], tuple[int, int]]:
    """How often an act is in a try: at least, and at most."""
    counts = [Counter(_keys(run.acts)) for run in runs]
    keys = {key for count in counts for key in count}
    return {key: (min(count[key] for count in counts), max(count[key] for count in counts)) for key in keys}


def _questions(runs: Sequence[Run]) -> set[str]:
    """Commands that say nothing new, and come again and again, or in one try more often than in another."""
    said: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for act in run.acts:
            said[act.what].add(act.queue or repr(sorted(act.fields.items())))
    counts = [Counter(act.what for act in run.acts if not act.queue) for run in runs]
    often = {what: (min(one[what] for one in counts), max(one[what] for one in counts)) for what in said}
    return {what for what, (least, most) in often.items()
            if len(said[what]) == 1 and (most >= _REPEATED or least < most)}  # fmt: skip


def _acts(first: Sequence[Run], second: Sequence[Run]) -> Iterator[Difference]:
    questions = _questions(first) | _questions(second)
    for what in sorted(questions):
        ours, theirs = ([sum(act.what == what for act in run.acts) for run in runs] for runs in (first, second))
        gap = max(min(theirs) - max(ours), min(ours) - max(theirs))
        if gap >= max(_OFTEN_LEAST, _OFTEN_APART * max(*ours, *theirs)):
            yield Difference("all parts", "~", f"{what}, times: {_range(ours)} -> {_range(theirs)}")
    yield from _sequence(*(
        [replace(run, acts=[act for act in run.acts if act.what not in questions]) for run in runs]
        for runs in (first, second)
    ))  # fmt: skip


def _sequence(first: Sequence[Run], second: Sequence[Run]) -> Iterator[Difference]:
    ours, theirs = _common(first), _common(second)
    our_times, their_times = _often(first), _often(second)
    matched = list(_matches(ours, theirs))
    found: list[tuple[int, Difference]] = []
    for a, b in matched:
        found += ((b, one) for one in _fields(ours[a], theirs[b], first, second))
    for sign, acts, alone, mine, other in (
        ("-", ours, set(range(len(ours))) - {a for a, _ in matched}, our_times, their_times),
        ("+", theirs, set(range(len(theirs))) - {b for _, b in matched}, their_times, our_times),
    ):
        told: Counter[tuple[str, str, str]] = Counter()
        for place in sorted(alone):
            act = acts[place]
            key = (act.part, act.what, act.queue)
            least, (sometimes, most) = mine[key][0], other.get(key, (0, 0))
            told[key] += 1
            if least > most and told[key] <= least - most:
                how = "once more: " if most else ""
            elif sign == "+" and least <= sometimes:  # as often in both; told of the second only
                how = "at another place: "
            else:
                continue
            before = acts[place - 1].what if place and acts[place - 1].part == act.part else ""
            what = f"{how}{act.what}{' {}' if act.queue else ''}{f', after {before}' if before else ', first of all'}"
            found.append((place, Difference(act.part, sign, what, act.queue)))
    yield from (one for _, one in sorted(found, key=lambda each: each[0]))


def _fields(a: Act, b: Act, first: Sequence[Run], second: Sequence[Run]) -> Iterator[Difference]:
    for name in sorted(a.fields.keys() | b.fields.keys()):
        if a.fields.get(name) == b.fields.get(name):
            continue
        if (name not in a.fields and _varies(first, b, name)) or (name not in b.fields and _varies(second, a, name)):
            continue
        old, new = (str(act.fields.get(name, "-")) for act in (a, b))
        yield Difference(b.part, "~", f"{b.what}{' {}' if b.queue else ''}: {name} {old} -> {new}", b.queue)


def _varies(runs: Sequence[Run], act: Act, name: str) -> bool:
    """Whether an act of that name has had such a field in any of these tries: then its values differ among them."""
    key = (act.part, act.what, act.queue)
    return any(name in one.fields for run in runs for one in run.acts if (one.part, one.what, one.queue) == key)


def _posted(first: Sequence[Run], second: Sequence[Run]) -> Iterator[Difference]:
    for point in dict.fromkeys(point for run in (*first, *second) for point in run.posted):
        sides = [[run.posted.get(point, {}) for run in runs] for runs in (first, second)]
        for ring in sorted({ring for side in sides for tails in side for ring in tails}, key=_natural):
            ours, theirs = ([tails.get(ring, 0) for tails in side] for side in sides)
            if _disjoint(ours, theirs):
                what = f"buffers posted {point}, to {{}}: {_range(ours)} -> {_range(theirs)}"
                yield Difference("up", "~", what, ring)


def _measured(first: Sequence[Run], second: Sequence[Run]) -> Iterator[Difference]:
    if any(run.lost for run in (*first, *second)):
        return
    for name in dict.fromkeys(name for run in (*first, *second) for name in run.measures):
        ours = [run.measures.get(name, 0.0) for run in first]
        theirs = [run.measures.get(name, 0.0) for run in second]
        gap = max(min(theirs) - max(ours), min(ours) - max(theirs))
        if _disjoint(ours, theirs) and gap >= _APART * max(*ours, *theirs):
            yield Difference("traffic", "~", f"{name}: {_range(ours)} -> {_range(theirs)}")


def _disjoint(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    return max(ours) < min(theirs) or max(theirs) < min(ours)


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value:.0f}"
                 for value in (min(values), max(values)))  # fmt: skip
    return low if low == high else f"{low} to {high}"


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def told(found: Sequence[Difference]) -> Iterator[tuple[str, list[str]]]:
    """The differences as lines, by what they are about; one line for all queues of which the same is to be said."""
    groups: dict[str, dict[tuple[str, str], list[str]]] = defaultdict(dict)
    for one in found:
        queues = groups[one.about].setdefault((one.sign, one.what), [])
        if one.queue:
            queues.append(one.queue)
    for about, lines in groups.items():
        yield about, [f"{sign} {what.replace('{}', _queues(queues))}" for (sign, what), queues in lines.items()]


def _queues(names: Collection[str]) -> str:
    """``rx0 to rx7, tx0``."""
    ordered = sorted(set(names), key=_natural)
    runs: list[list[str]] = [ordered[:1]]
    for before, name in pairwise(ordered):
        if _natural(name)[1][0] == _natural(before)[1][0] + 1 and _natural(name)[0] == _natural(before)[0]:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs if run)


def same(first: Sequence[Run], second: Sequence[Run]) -> str:
    """How much was compared, in a sentence: without that "no difference" says little."""
    acts = min(len(_common(runs)) for runs in (first, second))
    measures = len(set.intersection(*(set(run.measures) for run in (*first, *second))))
    return f"{acts} commands and registers, {measures} measures of traffic were compared"


def saved(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """A driver's tries, for JSON."""
    return {"version": VERSION, "driver": name, "runs": [run.as_dict() for run in runs]}


def loaded(data: Any) -> tuple[str, list[Run]]:
    """A driver's name and its tries, as they were saved.

    Raises:
        ValueError: they are not, or by another version.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("runs"), list) or not data["runs"]:
        raise ValueError("it has no runs of a driver in it")
    if data.get("version") != VERSION:
        raise ValueError(f"it is of version {data.get('version')!r}, this is version {VERSION}")
    data = escaped(data)
    return str(data.get("driver", "")), [Run.from_dict(one) for one in data["runs"]]
