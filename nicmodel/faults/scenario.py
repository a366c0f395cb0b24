"""A scenario: faults with times, probabilities and a seed, in a TOML file.

seed = 7                    # the same seed and traffic give the same strikes

[[fault]]
name = "wire-drop"
nic = "nic0"                # all NICs if it is left out
start = 5                   # seconds after the scenario's beginning
duration = 10
probability = 0.01
direction = "rx"

[weather]                   # behaviours that keep the contract (`nicmodel.faults.weather`); or several: [[weather]]
seed = 7
strength = 0.3              # the greatest probability of each
only = ["tx-miss"]          # all that lose no packet if it is left out
nic = "nic0"                # all NICs if it is left out
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from nicmodel.faults.fault import Fault, FaultError, shortened
from nicmodel.faults.faults import Faults, Kinds, named_fault
from nicmodel.faults.weather import STRENGTH, Weather


@dataclass(frozen=True)
class Scenario:
    """Faults of the NICs of a server.

    Attributes:
        seed: of all dice.
        faults: each fault with the name of its NIC, None for all.
        weather: likewise.
    """

    seed: int
    faults: tuple[tuple[str | None, Fault], ...]
    weather: tuple[tuple[str | None, Weather], ...] = ()

    @classmethod
    def parse(cls, text: str, kinds: Kinds) -> Self:
        """Read a scenario of faults of these kinds.

        Raises:
            FaultError: it is not TOML, or not a scenario; the text says where.
        """
        try:
            found = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise FaultError(str(error)) from None
        except RecursionError:
            raise FaultError("a scenario is not nested so deeply") from None
        unknown = found.keys() - {"seed", "fault", "weather"}
        if unknown:
            raise FaultError(f"a scenario has a seed, faults and weather, but no {shortened(min(unknown))}")
        seed, entries = found.get("seed", 0), found.get("fault", [])
        if not isinstance(seed, int):
            raise FaultError(f"the seed is {shortened(seed)}; it is a whole number")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise FaultError("faults are tables: [[fault]]")
        weather = found.get("weather", [])
        weather = [weather] if isinstance(weather, dict) else weather
        if not isinstance(weather, list) or not all(isinstance(entry, dict) for entry in weather):
            raise FaultError("weather is a table, [weather], or several: [[weather]]")
        return cls(
            seed,
            tuple(_read(number, entry, kinds) for number, entry in enumerate(entries, 1)),
            tuple(_read_weather(entry, kinds) for entry in weather),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], kinds: Kinds) -> Self:
        """Read a file; raises as `parse`, and OSError."""
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            try:
                return cls.parse(file.read(), kinds)
            except FaultError as error:
                raise FaultError(f"{os.fspath(path)}: {error}") from None

    def begin(self, nics: Iterable[Faults]) -> None:
        """Give the faults to their NICs; their times count from now.

        Raises:
            FaultError: there is no such NIC, or it cannot have the faults; nothing is begun then.
        """
        by_name = {faults.nic.name: faults for faults in nics}
        entries = [*((nic, fault.name) for nic, fault in self.faults), *((nic, "weather") for nic, _ in self.weather)]
        for nic, what in entries:
            if nic is not None and nic not in by_name:
                raise FaultError(f"{what}: there is no NIC {shortened(nic)}, but {', '.join(by_name)}")
        for name, faults in by_name.items():
            given = [fault for nic, fault in self.faults if nic in (None, name)]
            for nic, weather in self.weather:
                given += weather.scenario(faults.kinds) if nic in (None, name) else []
            faults.check(given)
        for number, (nic, fault) in enumerate(self.faults):
            for name, faults in by_name.items():
                if nic in (None, name):
                    faults.add(fault, seed=f"{self.seed} {number} {name}")
        for nic, weather in self.weather:
            for name, faults in by_name.items():
                if nic in (None, name):
                    weather.begin(faults)


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
    if not isinstance(only, list) or not all(isinstance(name, str) for name in only):
        raise FaultError("only is a list of names of behaviours")
    if nic is not None and not isinstance(nic, str):
        raise FaultError(f"nic is {shortened(nic)}; it is a name such as nic0")
    weather = Weather(seed, float(strength), tuple(only))
    weather.scenario(kinds)
    return nic, weather
