"""The corpus: inputs that have run something of the driver for the first time, in files, for the next time."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

from nicmodel.faults.fault import FaultError
from nicmodel.faults.faults import Kinds
from nicmodel.faults.scenario import Scenario
from nicmodel.vm.packages import write_whole

#: Inputs of each sort that are kept; then one goes for each that comes.
MOST = 2000


class Corpus:
    """Inputs by what they are about, each sort in a folder of its own.

    Args:
        folder: where they are; made if it is not there.
        kinds: faults that inputs may have; files with others are left alone.
        chance: the dice.
    """

    def __init__(self, folder: Path, kinds: Kinds, chance: random.Random) -> None:
        self.folder, self._kinds, self._chance = folder, kinds, chance
        self._inputs: dict[str, list[tuple[Path, Scenario]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._inputs.values()))

    def load(self, about: str) -> Iterator[Scenario]:
        """Those of a sort that are in the folder."""
        kept = self._inputs.setdefault(about, [])
        for path in sorted((self.folder / about).glob("*.toml"))[:MOST]:
            try:
                kept.append((path, Scenario.load(path, self._kinds)))
            except (FaultError, OSError, UnicodeDecodeError):
                continue
            yield kept[-1][1]

    def add(self, about: str, one: Scenario) -> None:
        """Keep an input."""
        text = one.toml()
        path = self.folder / about / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.toml"
        kept = self._inputs.setdefault(about, [])
        if any(path == other for other, _ in kept):
            return
        if len(kept) >= MOST:
            old, _ = kept.pop(self._chance.randrange(len(kept)))
            old.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
        kept.append((path, one))

    def choose(self, about: str) -> Scenario | None:
        """Any of a sort; the newest are the likeliest. None if there is none."""
        kept = self._inputs.get(about)
        if not kept:
            return None
        return kept[max(self._chance.randrange(len(kept)), self._chance.randrange(len(kept)))][1]
