"""Runs a fuzz target: Hypothesis chooses the examples, minimises what fails, and keeps a corpus.

An example is a setup and a list of blocks. A block is a window on rows that numpy makes from a seed: hundreds or
thousands of descriptors, frames, commands or messages at the cost of a few draws. Hypothesis can make a list and its
windows shorter, so that a failure that needs one descriptor ends as an example with that descriptor alone.

Hypothesis, and not a fuzzer that watches which lines run: the packet path is compiled code, in which such a fuzzer for
Python sees nothing. What does guide the search is what the device counts: an example is the better, the more different
things have happened in it, and the best are kept.
"""

from __future__ import annotations

import gc
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase

from .memory import resident

#: Rows of a table, which are made at once.
ROWS = 512
#: Tables that a block may touch.
TABLES = 8
#: Examples between two looks at the limits of a campaign.
ROUND = 20


class Block(NamedTuple):
    """A window, rows `start` to `start + size`, of the tables that a target makes of its kind and seed."""

    kind: str
    seed: int
    start: int
    size: int

    @property
    def rng(self) -> np.random.Generator:
        """What the table is made with; always all `ROWS` rows, so that a row is the same in every window."""
        return np.random.default_rng(self.seed)

    @property
    def rows(self) -> slice:
        """The window."""
        return slice(self.start, self.start + self.size)

    def parts(self) -> Iterator[Block]:
        """The same rows as windows of one table each, all of which have a seed of their own."""
        start, stop = self.start, self.start + self.size
        while start < stop:
            table, first = divmod(start, ROWS)
            count = min(ROWS - first, stop - start)
            yield Block(self.kind, self.seed + table, first, count)
            start += count


class Device(Protocol):
    """What an example is played on."""

    def finish(self) -> None:
        """See that all is as it should be in the end."""

    def close(self) -> None:
        """Give everything back."""


class Example(NamedTuple):
    """What a target is run with: a number that says how everything is set up, and what then happens in turn."""

    setup: int
    blocks: tuple[Block, ...]

    def text(self) -> str:
        """As a line of JSON, which `--replay` takes."""
        return json.dumps([self.setup, [list(block) for block in self.blocks]])

    def play(self, device: Device, steps: Mapping[str, Callable[[Block], None]]) -> None:
        """Have a device do all of it, each part by the step of its kind, and close it whatever comes of that."""
        try:
            for block in self.blocks:
                for part in block.parts():
                    steps[part.kind](part)
            device.finish()
        finally:
            device.close()

    @classmethod
    def parse(cls, text: str) -> Example:
        """From that line."""
        setup, blocks = json.loads(text)
        return cls(setup, tuple(Block(*block) for block in blocks))


class Run:
    """One example on its way.

    Attributes:
        counts: what was done, by plural noun; the first is what ``--operations`` counts.
        reached: names of what has happened: statuses, drops, errors.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reached: set[str] = set()


class Target(Protocol):
    """Something to be fuzzed.

    Attributes:
        name: on the command line.
        operations: what is counted as an operation, a key of `Run.counts`.
        setups: how many there are.
        kinds: of blocks.
        blocks: the most in one example.
    """

    @property
    def name(self) -> str: ...
    @property
    def operations(self) -> str: ...
    @property
    def setups(self) -> int: ...
    @property
    def kinds(self) -> tuple[str, ...]: ...
    @property
    def blocks(self) -> int: ...

    def run(self, example: Example, run: Run) -> None:
        """Do what an example says.

        Raises:
            AssertionError: an invariant does not hold.
        """


class Failures(logging.Handler):
    """Keeps what is logged as an error: an exception that a callback swallowed."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))

    def __enter__(self) -> Failures:
        logging.getLogger("nicmodel").addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("nicmodel").removeHandler(self)


def execute(target: Target, example: Example) -> Run:
    """Run one example; nothing may be logged as an error.

    Raises:
        AssertionError: an invariant does not hold.
    """
    run = Run()
    with Failures() as failures:
        target.run(example, run)
    assert not failures.records, "\n".join(failures.records)
    return run


def examples(target: Target) -> st.SearchStrategy[Example]:
    """Examples of a target."""
    # By its end and its size, which both can be made smaller: the end until the last row that is needed, then the size.
    # And by four choices in all: Hypothesis drops an element of a list of which it has made five choices or fewer.
    rows = st.integers(1, TABLES * ROWS)
    blocks = st.builds(
        lambda kind, seed, stop, size: Block(kind, seed, max(0, stop - size), min(stop, size)),
        st.sampled_from(target.kinds), st.integers(0, (1 << 32) - 1), rows, rows,
    )  # fmt: skip
    return st.builds(
        Example,
        st.integers(0, target.setups - 1),
        st.lists(blocks, min_size=1, max_size=target.blocks).map(tuple),
    )


def short_run(target: Target, number: int) -> Counter[str]:
    """The same few examples every time, for the test suite: one with a table of each kind, and `number` more.

    Raises:
        AssertionError: an invariant does not hold; Hypothesis says for which smallest example.
    """
    counts: Counter[str] = Counter()

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(examples(target))
    def attempt(example: Example) -> None:
        counts.update(execute(target, example).counts)

    counts.update(
        execute(target, Example(0, tuple(Block(kind, 0, 0, ROWS) for kind in sorted({*target.kinds})))).counts
    )
    attempt()
    return counts


@dataclass
class Campaign:
    """A run of any length.

    Args:
        target: what is fuzzed.
        corpus: where examples are kept; the one at work is in `running.json` there, for when the process dies of it.
        seed: with the same one and an empty corpus the same examples are run.
        most_examples: ends it.
        most_operations: likewise.
        most_seconds: likewise.
        report: called after every round.

    Attributes:
        counts: what was done.
        reached: what happened.
        memory: resident bytes after each round.
        failing: the smallest example that fails.
        error: what it fails with.
    """

    target: Target
    corpus: Path
    seed: int
    most_examples: int | None = None
    most_operations: int | None = None
    most_seconds: float | None = None
    report: Callable[[Campaign], None] = lambda campaign: None
    counts: Counter[str] = field(default_factory=Counter)
    reached: set[str] = field(default_factory=set)
    memory: list[int] = field(default_factory=list)
    failing: Example | None = None
    error: BaseException | None = None
    seconds: float = 0.0

    def run(self) -> bool:
        """Until a limit is reached or an example has failed; whether none has."""
        begun = time.monotonic()
        folder = self.corpus / self.target.name
        folder.mkdir(parents=True, exist_ok=True)
        self._running = folder / "running.json"
        database = DirectoryBasedExampleDatabase(folder)
        number = 0
        while not self._done() and self.error is None:
            size = ROUND if self.most_examples is None else min(ROUND, self.most_examples - self.counts["examples"])
            self._round(self.seed + number, size, database, begun)
            number += 1
            self.seconds = time.monotonic() - begun
            gc.collect()  # labs are full of cycles
            self.memory.append(resident())
            self.report(self)
        self._running.unlink(missing_ok=True)
        return self.error is None

    def _done(self) -> bool:
        return (
            (self.most_examples is not None and self.counts["examples"] >= self.most_examples)
            or (self.most_operations is not None and self.counts[self.target.operations] >= self.most_operations)
            or (self.most_seconds is not None and self.seconds >= self.most_seconds)
        )

    def _round(self, seed: int, size: int, database: ExampleDatabase, begun: float) -> None:
        def attempt(example: Example) -> None:
            self.seconds = time.monotonic() - begun
            if self.failing is None and self._done():
                return  # the rest of this round
            self._running.write_text(example.text())
            try:
                run = execute(self.target, example)
            except BaseException as error:
                self.failing, self.error = example, error
                raise
            self.counts.update(run.counts)
            self.counts["examples"] += 1
            self.reached |= run.reached
            hypothesis.target(float(len(run.reached)), label="different things that happened")

        attempt.__qualname__ = self.target.name  # by which the corpus knows it
        configured = settings(
            max_examples=size,
            database=database,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
            print_blob=False,
            report_multiple_bugs=False,
        )
        # In this order: a seed takes the database away from settings that are there before it.
        run_round = configured(hypothesis.seed(seed)(hypothesis.given(examples(self.target))(attempt)))
        try:
            run_round()
        except KeyboardInterrupt:
            self.failing = None
            raise
        except BaseException as error:
            # The last example that failed is the smallest: Hypothesis shows it once more in the end.
            if self.error is None:
                raise
            self.error = error


def flat(memory: Sequence[int], slack: int = 16 << 20) -> bool | None:
    """Whether memory no longer grows: the most of the second half is not more than that of the first, and some slack.

    None: there were too few rounds to say, since caches are filled in the first.
    """
    if len(memory) < 10:
        return None
    half = len(memory) // 2
    return max(memory[half:]) <= max(memory[:half]) + slack
