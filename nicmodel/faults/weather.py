"""Weather: what a device may do by its contract and rarely does, mixed by a seed.

A behaviour is a fault that breaks nothing (`Fault.source` says where that is seen). Weather is a number of them, each
with a probability and parameters that are drawn from the seed: it is no more than a scenario that dice have made, and
can be written down as one, or cut down to the behaviour that matters.

    Weather.parse("7:0.3").begin(faults)                       # all that lose nothing, each up to 0.3 of the time
    Weather.parse("7:0.3:tx-miss,rx-scatter").begin(faults)    # these two, as they were in the mixture
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Self

from nicmodel import toml_text
from nicmodel.faults.fault import Chance, Fault, FaultError, Injection, make, shortened
from nicmodel.faults.faults import Faults, Kinds
from nicmodel.nearest import did_you_mean

#: The form of a weather, for help texts.
FORM = "SEED[:STRENGTH[:NAME,...]]"
#: Probability of each behaviour, at most, if nothing else is said.
STRENGTH = 0.2


def behaviours(kinds: Kinds) -> dict[str, type[Chance]]:
    """Those of these faults that keep the contract, by name."""
    return {name: kind for name, kind in kinds.items() if kind.source and issubclass(kind, Chance)}


@dataclass(frozen=True)
class Weather:
    """Behaviours of a device that keep its contract.

    Attributes:
        seed: decides on all of it: with the same seed and traffic a device does the same.
        strength: the greatest probability of a behaviour at each of its occasions, up to 1.
        names: the behaviours; none: all that lose no packet.
    """

    seed: int
    strength: float = STRENGTH
    names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise FaultError(f"the strength of weather is {shortened(self.strength)}; it is 0 to 1")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``SEED[:STRENGTH[:NAME,...]]``; whether there are such names is seen by `scenario`.

        Raises:
            FaultError: it is something else; the text says what is right.
        """
        seed, _, rest = text.partition(":")
        strength, _, names = rest.partition(":")
        if not re.fullmatch(r"-?\d{1,18}", seed, re.ASCII):
            raise FaultError(f"weather is {shortened(text)}; it is {FORM}, such as 7:0.3, and a seed is a whole number")
        try:
            given = float(strength) if strength else STRENGTH
        except ValueError:
            raise FaultError(f"the strength of weather is {shortened(strength)}; it is a number from 0 to 1") from None
        return cls(int(seed), given, tuple(name for name in names.split(",") if name))

    def __str__(self) -> str:
        text = f"{self.seed}:{self.strength:g}"
        return f"{text}:{','.join(self.names)}" if self.names else text

    def scenario(self, kinds: Kinds) -> list[Chance]:
        """The behaviours with their parameters.

        Those of one do not depend on which others there are, so that it can be had alone, as it was.

        Raises:
            FaultError: there is no such behaviour among `kinds`; the text says which there are.
        """
        known = behaviours(kinds)
        for name in self.names:
            if name not in known:
                among = f"{', '.join(known)}{did_you_mean(name, known)}"
                broken = "breaks the contract" if name in kinds else "is no behaviour of weather"
                raise FaultError(f"{shortened(name)} {broken}; there are {among}")
        names = self.names or [name for name, kind in known.items() if not kind.loses]
        return [self._draw(known[name]) for name in names]

    def begin(self, faults: Faults) -> list[Injection]:
        """Let a NIC have it, from now on.

        Raises:
            FaultError: see `scenario`; or the NIC has too many faults already. Nothing is begun then.
        """
        found = self.scenario(faults.kinds)
        faults.check(found)
        return [faults.add(one, seed=f"weather {self.seed} {one.name} {faults.nic.name}") for one in found]

    def toml(self, kinds: Kinds) -> str:
        """The same as a scenario's file (`nicmodel.faults.scenario`), to be read and changed. Raises as `scenario`."""
        faults = [{"name": one.name, **one.given()} for one in self.scenario(kinds)]
        return toml_text.dumps({"seed": self.seed, "fault": faults})

    def _draw(self, kind: type[Chance]) -> Chance:
        chance = random.Random(f"{self.seed} {kind.name}")
        values: dict[str, object] = {"probability": float(f"{self.strength * chance.random():.3g}")}
        for name, parameter in kind.parameters().items():
            if parameter.drawn is not None:
                values[name] = parameter.drawn.draw(chance)
        made: Fault = make(kind, values)
        assert isinstance(made, Chance)
        return made
