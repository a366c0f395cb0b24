"""A scenario: faults with times, probabilities and a seed, and frames, in a TOML file.

seed = 7                    # the same seed and traffic give the same strikes

[[fault]]
name = "wire-drop"
nic = "nic0"                # all NICs if it is left out
start = 5                   # seconds after the scenario's beginning
duration = 10
probability = 0.01
direction = "rx"

[[frame]]                   # what the NIC receives, as if it came from its wire
nic = "nic0"                # all NICs if it is left out
start = 6
bytes = "ffffffffffff0200000000010806"

[[guest]]                   # what a guest does meanwhile: for who plays a scenario in one (`nicmodel driver fuzz`)
start = 7
run = "ip link set $NETIF down"

[weather]                   # behaviours that keep the contract (`nicmodel.faults.weather`); or several: [[weather]]
seed = 7
strength = 0.3              # the greatest probability of each
only = ["tx-miss"]          # all that lose no packet if it is left out
nic = "nic0"                # all NICs if it is left out
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from nicmodel import toml_text
from nicmodel.faults.fault import SPAN, Fault, FaultError, shortened
from nicmodel.faults.faults import Faults, Kinds, named_fault
from nicmodel.faults.weather import STRENGTH, Weather
from nicmodel.packet.frames import MAX_FRAME

#: Faults, frames, and commands for a guest that a scenario has, at most, of each.
MOST_STEPS = 1000
#: Each of these is some dozens of faults.
_MOST_WEATHERS = 100
#: Characters of a file; reading them takes some seconds.
_MOST_TEXT = 1 << 24


@dataclass(frozen=True)
class Frame:
    """A frame that a NIC receives.

    Attributes:
        data: its bytes.
        start: seconds after the scenario's beginning.
        nic: the NIC's name; None: all.
    """

    data: bytes
    start: float = 0.0
    nic: str | None = None


@dataclass(frozen=True)
class Deed:
    """Something that a guest does.

    Attributes:
        run: a line for its shell.
        start: seconds after the scenario's beginning.
    """

    run: str
    start: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """Faults of the NICs of a server.

    Attributes:
        seed: of all dice.
        faults: each fault with the name of its NIC, None for all.
        weather: likewise.
        frames: what the NICs receive.
        guest: what a guest does; a server leaves it to others.
    """

    seed: int
    faults: tuple[tuple[str | None, Fault], ...]
    weather: tuple[tuple[str | None, Weather], ...] = ()
    frames: tuple[Frame, ...] = ()
    guest: tuple[Deed, ...] = ()

    @classmethod
    def parse(cls, text: str, kinds: Kinds) -> Self:
        """Read a scenario's file, with faults of these kinds.

        Raises:
            FaultError: it is not TOML, or not a scenario; the text says where.
        """
        try:
            return cls.of(toml_text.loads(text), kinds)
        except ValueError as error:
            raise FaultError(str(error)) from None

    @classmethod
    def of(cls, table: Mapping[str, Any], kinds: Kinds) -> Self:
        """The scenario that a file says, or what JSON has of the same.

        Raises:
            FaultError: it is not a scenario; the text says where.
        """
        found = dict(table)
        unknown = found.keys() - {"seed", "fault", "weather", "frame", "guest"}
        if unknown:
            raise FaultError(f"a scenario has a seed, faults, frames and weather, but no {shortened(min(unknown))}")
        seed, entries = found.get("seed", 0), _tables(found, "fault", "faults are tables: [[fault]]")
        if not isinstance(seed, int):
            raise FaultError(f"the seed is {shortened(seed)}; it is a whole number")
        if isinstance(found.get("weather"), dict):
            found["weather"] = [found["weather"]]
        weather = _tables(found, "weather", "weather is a table, [weather], or several: [[weather]]")
        frames = _tables(found, "frame", "frames are tables: [[frame]]")
        deeds = _tables(found, "guest", "what a guest does is tables: [[guest]]")
        if max(len(entries), len(frames), len(deeds)) > MOST_STEPS or len(weather) > _MOST_WEATHERS:
            raise FaultError(
                f"a scenario has at most {MOST_STEPS} faults, as many frames and as many commands for a guest, "
                f"and {_MOST_WEATHERS} weathers"
            )
        return cls(
            seed,
            tuple(_read(number, entry, kinds) for number, entry in enumerate(entries, 1)),
            tuple(_read_weather(entry, kinds) for entry in weather),
            tuple(_read_frame(entry) for entry in frames),
            tuple(_read_deed(entry) for entry in deeds),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], kinds: Kinds) -> Self:
        """Read a file; raises as `parse`, and OSError."""
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            try:
                text = file.read(_MOST_TEXT + 1)
                if len(text) > _MOST_TEXT:
                    raise FaultError(f"a scenario has at most {_MOST_TEXT:,} characters")
                return cls.parse(text, kinds)
            except FaultError as error:
                raise FaultError(f"{os.fspath(path)}: {error}") from None

    def begin(self, nics: Iterable[Faults]) -> None:
        """Give faults and frames to their NICs; their times count from now. The frames come after the faults.

        Raises:
            FaultError: there is no such NIC, or it cannot have the faults; nothing is begun then.
        """
        by_name = {faults.nic.name: faults for faults in nics}
        entries = [*((nic, fault.name) for nic, fault in self.faults), *((nic, "weather") for nic, _ in self.weather)]
        entries += [(frame.nic, "a frame") for frame in self.frames]
        for nic, what in entries:
            if nic is not None and nic not in by_name:
                raise FaultError(f"{what}: there is no NIC {shortened(nic)}, but {', '.join(by_name)}")
        for name, faults in by_name.items():
            given = [fault for nic, fault in self.faults if nic in (None, name)]
            for nic, weather in self.weather:
                given += weather.scenario(faults.kinds) if nic in (None, name) else []
            later = {frame.start for frame in self.frames if frame.nic in (None, name) and frame.start > 0}
            faults.check(given, len(later))
        for number, (nic, fault) in enumerate(self.faults):
            for name, faults in by_name.items():
                if nic in (None, name):
                    faults.add(fault, seed=f"{self.seed} {number} {name}")
        for nic, weather in self.weather:
            for name, faults in by_name.items():
                if nic in (None, name):
                    weather.begin(faults)
        for name, faults in by_name.items():
            theirs = [frame for frame in self.frames if frame.nic in (None, name)]
            for start in dict.fromkeys(frame.start for frame in theirs):
                faults.receive([frame.data for frame in theirs if frame.start == start], start)

    def table(self) -> dict[str, Any]:
        """What the scenario's file says, of which `of` makes the same, also after JSON."""
        faults = [{"name": fault.name, **_named_nic(nic), **fault.given()} for nic, fault in self.faults]
        weather = [
            {
                "seed": one.seed,
                "strength": one.strength,
                **_named_nic(nic),
                **({"only": list(one.names)} if one.names else {}),
            }
            for nic, one in self.weather
        ]
        frames = [{**_named_nic(one.nic), **_begins(one.start), "bytes": one.data.hex()} for one in self.frames]
        deeds = [{**_begins(one.start), "run": one.run} for one in self.guest]
        tables = {"fault": faults, "weather": weather, "frame": frames, "guest": deeds}
        return {"seed": self.seed, **{name: found for name, found in tables.items() if found}}

    def toml(self) -> str:
        """The scenario's file, from which `parse` makes the same."""
        return toml_text.dumps(self.table())


def _named_nic(nic: str | None) -> dict[str, str]:
    return {} if nic is None else {"nic": nic}


def _begins(start: float) -> dict[str, float]:
    return {"start": start} if start else {}


def _tables(found: Mapping[str, Any], name: str, complaint: str) -> list[dict[str, Any]]:
    """The tables of a name.

    Raises:
        FaultError: it is something else.
    """
    tables = found.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise FaultError(complaint)
    return tables


def _read_frame(entry: dict[str, Any]) -> Frame:
    if unknown := entry.keys() - {"nic", "start", "bytes"}:
        raise FaultError(f"a frame has bytes, start and nic, but no {shortened(min(unknown))}")
    text, nic = entry.get("bytes"), entry.get("nic")
    if nic is not None and not isinstance(nic, str):
        raise FaultError(f"nic is {shortened(nic)}; it is a name such as nic0")
    try:
        data = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        data = b""
    if not 0 < len(data) <= MAX_FRAME:
        raise FaultError(f"the bytes of a frame are {shortened(text)}; they are 1 to {MAX_FRAME}, in hexadecimal")
    return Frame(data, _read_start(entry), nic)


def _read_deed(entry: dict[str, Any]) -> Deed:
    if unknown := entry.keys() - {"start", "run"}:
        raise FaultError(f"what a guest does has run and start, but no {shortened(min(unknown))}")
    line = entry.get("run")
    if not isinstance(line, str):
        raise FaultError(f"run is {shortened(line)}; it is a line for the guest's shell")
    return Deed(line, _read_start(entry))


def _read_start(entry: dict[str, Any]) -> float:
    start = entry.get("start", 0.0)
    if isinstance(start, bool) or not isinstance(start, (int, float)):
        raise FaultError(f"start is {shortened(start)}; it is a number of seconds")
    try:
        SPAN.check(start, None)
    except ValueError as error:
        raise FaultError(f"start {error}") from None
    return float(start)


def _read(number: int, entry: dict[str, Any], kinds: Kinds) -> tuple[str | None, Fault]:
    parameters = dict(entry)
    name, nic = parameters.pop("name", None), parameters.pop("nic", None)
    try:
        if not isinstance(name, str):
            raise FaultError("it has no name")
        if nic is not None and not isinstance(nic, str):
            raise FaultError(f"nic is {shortened(nic)}; it is a name such as nic0")
        return nic, named_fault(name, parameters, kinds)
    except FaultError as error:
        raise FaultError(f"fault {number}: {error}") from None


def _read_weather(entry: dict[str, Any], kinds: Kinds) -> tuple[str | None, Weather]:
    unknown = entry.keys() - {"seed", "strength", "only", "nic"}
    if unknown:
        raise FaultError(f"weather has a seed, strength, only and nic, but no {shortened(min(unknown))}")
    seed, strength, only, nic = (
        entry.get(name, default)
        for name, default in (("seed", None), ("strength", STRENGTH), ("only", []), ("nic", None))
    )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise FaultError(f"the seed of weather is {shortened(seed)}; it is a whole number")
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise FaultError(f"the strength of weather is {shortened(strength)}; it is a number from 0 to 1")
    if not isinstance(only, list) or not all(isinstance(name, str) for name in only) or len(set(only)) < len(only):
        raise FaultError("only is a list of names of behaviours, each once")
    if nic is not None and not isinstance(nic, str):
        raise FaultError(f"nic is {shortened(nic)}; it is a name such as nic0")
    weather = Weather(seed, float(strength), tuple(only))
    weather.scenario(kinds)
    return nic, weather
