"""The loop: draw an input, let the device do it, see what ran of the driver, look whether anything has gone wrong."""

from __future__ import annotations

import random
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nicmodel.faults.scenario import Scenario
from nicmodel.vm.channel import GuestTimeoutError
from nicmodel.vm.errors import VmError
from nicmodel.vm.fuzz.corpus import Corpus
from nicmodel.vm.fuzz.finding import KNOWN, Sign
from nicmodel.vm.fuzz.guide import Seen
from nicmodel.vm.fuzz.inputs import FAST, Inputs, keeps_contract
from nicmodel.vm.fuzz.smaller import Limits, Smaller
from nicmodel.vm.fuzz.target import EMULATOR, HANG, SETTLE, STUCK, Found, Target, in_a_row, length, pause
from nicmodel.vm.packages import write_whole

#: Seconds of fast inputs in a row, between slow ones, and from one look at the kernel's log and the link to the next.
_BURST, _CHECK = 1.0, 2.0
#: Slow inputs of a corpus that are played at the beginning.
_SLOW = 30
#: Inputs in a row of which the driver takes no notice, after which it is looked what has become of it.
_IDLE = 8
#: Inputs after which a guest is exchanged: what has gone astray in it without a word is not to last.
_GUEST = 50_000
#: Seconds of inputs that are played again at once, at most.
_LONGEST = 60.0
#: Inputs that are remembered, of which a finding is made.
_REMEMBERED = 400
#: Findings that are written; then it is time to look at them.
MOST_FINDINGS = 100


@dataclass
class Finding:
    """Something that has gone wrong, and what makes it happen.

    Attributes:
        sign: by what it is known.
        log: what the kernel has said.
        scenario: what makes it happen; None if it did not happen again.
        kept: whether the device kept its contract.
        folder: where it is written.
        more: how often it was seen besides.
    """

    sign: Sign
    log: tuple[str, ...]
    scenario: Scenario | None
    kept: bool
    folder: Path
    more: int = 0


@dataclass
class Progress:
    """How far the fuzzer is.

    Attributes:
        began: on the monotonic clock.
        inputs: that were played.
        busy: seconds that this took; the rest went into guests that start, looks, and findings made small.
        fast: of the inputs that a guest answers by itself, how many, and in how many seconds.
        blocks: of the driver's that have run.
        corpus: inputs that are kept.
        guests: that were started.
        findings: by their signs.
        known: findings that are no news, by what they are called.
        doing: what takes time just now, besides inputs.
    """

    began: float = field(default_factory=time.monotonic)
    inputs: int = 0
    busy: float = 0.0
    fast: tuple[int, float] = (0, 0.0)
    blocks: int = 0
    corpus: int = 0
    guests: int = 0
    findings: dict[Sign, Finding] = field(default_factory=dict)
    known: Counter[str] = field(default_factory=Counter)
    doing: str = ""


class Fuzzer:
    """Fuzzes a driver.

    Args:
        target: the driver.
        again: another one like it, in which findings are played again.
        inputs: makes the inputs.
        corpus: keeps those that have run something new.
        seen: what has run.
        chance: the dice.
        out: folder for findings.
        limits: for making one small.
        tell: called when there is progress.
        how: the command that plays a scenario again, but for the scenario's name.
    """

    def __init__(
        self,
        target: Target,
        again: Target,
        inputs: Inputs,
        corpus: Corpus,
        seen: Seen,
        chance: random.Random,
        out: Path,
        limits: Limits,
        tell: Callable[[Progress], None],
        how: str,
    ) -> None:
        self._target, self._again, self._inputs, self._corpus, self._seen = target, again, inputs, corpus, seen
        self._chance, self._out, self._limits, self._tell, self._how = chance, out, limits, tell, how
        self.progress = Progress()
        self._history: deque[Scenario] = deque(maxlen=_REMEMBERED)
        self._played = 0  # in this guest
        self._idle = 0  # inputs in a row of which nothing has run
        self._checked = 0.0
        self._kept = True  # all that the device did since the contract was looked at

    def run(self, seconds: float, findings: int = MOST_FINDINGS) -> None:
        """Go on for some seconds, or until there are so many findings.

        Raises:
            VmError: no guest comes up, or the server has gone.
        """
        fast = [name for name in self._inputs.about if name in FAST]
        slow = [name for name in self._inputs.about if name not in FAST]
        end = time.monotonic() + seconds
        self._start()
        for name in self._inputs.about:
            kept = list(self._corpus.load(name))
            # What they run is no news. Of those that take seconds some will do.
            for one in kept if name in FAST else kept[-_SLOW:]:
                if time.monotonic() < end and len(self.progress.findings) < findings:
                    self._play(name, one)
        while time.monotonic() < end and len(self.progress.findings) < findings:
            burst = min(end, time.monotonic() + _BURST) if fast else 0.0
            drawn = self._draw(fast) if fast else None
            while drawn and time.monotonic() < burst and len(self.progress.findings) < findings:
                drawn = self._play(*drawn, then=fast)
            if slow and time.monotonic() < end and len(self.progress.findings) < findings:
                self._play(*self._draw(slow))
        if self._played:
            self._check()

    def _draw(self, among: Sequence[str]) -> tuple[str, Scenario]:
        """An input, and what of these it is about."""
        about = self._chance.choice(among)
        one = self._corpus.choose(about) if self._chance.random() < 0.6 else None
        if one is None:
            return about, self._inputs.draw(about)
        return about, self._inputs.mutate(one, self._corpus.choose(about) or one)

    def _start(self) -> None:
        """A fresh guest."""
        self._doing("starting a guest")
        self._target.start()
        self._history.clear()
        self._played = 0
        self._kept = True
        self._checked = time.monotonic()
        self.progress.guests += 1
        self._doing("")

    def _doing(self, what: str) -> None:
        self.progress.doing = what
        self.progress.blocks, self.progress.corpus = self._seen.blocks, len(self._corpus)
        self._tell(self.progress)

    def _play(self, about: str, one: Scenario, then: Sequence[str] = ()) -> tuple[str, Scenario] | None:
        """Play an input, keep it if it is worth it, and look what has become of the driver from time to time.

        Returns:
            One about `then`, if that is given: it is drawn while the driver is at work.
        """
        guide, is_fast = self._target.guide, about in FAST
        assert guide is not None
        began = time.monotonic()
        self._history.append(one)
        self._played += 1
        self._kept &= keeps_contract(one)
        guide.clear()
        self._target.begin(one)
        hung = ""
        try:
            for deed in one.guest:
                self._target.run(deed.run)
        except GuestTimeoutError:
            hung = deed.run
        except VmError:
            pass  # the check tells what has become of it
        following = self._draw(then) if then else None
        guide.quiet(pause(one))
        if guide.look():
            self._corpus.add(about, one)
        # A driver that does nothing with frames is dead, or has no buffers any more.
        self._idle = self._idle + 1 if guide.idle and one.frames else 0
        now = time.monotonic()
        self.progress.inputs += 1
        self.progress.busy += now - began
        if is_fast:
            count, spent = self.progress.fast
            self.progress.fast = count + 1, spent + now - began
        if hung or self._idle >= _IDLE or self._target.complains or now > self._checked + _CHECK:
            self._check(hung)
        return following

    def _check(self, hung: str = "") -> None:
        """Look whether the kernel complains, the guest lives, the driver works and keeps the contract."""
        target = self._target
        found = target.found()
        if found or hung:
            time.sleep(SETTLE)  # what it says has more lines
            found = target.found(again=True)
        if hung and not found:
            found = [Found(HANG, (f"'{hung}' does not end",))]
        crashed = any(not one.sign.mild for one in found)
        if not crashed:
            found += target.revive()
            crashed = any(not one.sign.mild for one in found)
        contract = target.contract() if not crashed else []
        if self._kept:
            found += contract
        self._kept, self._idle = True, 0
        self._checked = time.monotonic()
        for one in found:
            self._take(one)
        if crashed or self._played > _GUEST:
            self._start()
        self._doing("")

    def _take(self, found: Found) -> None:
        """Count a finding; make it small and write it if it is new."""
        sign = found.sign
        if sign == EMULATOR or sign in KNOWN:
            self.progress.known[KNOWN.get(sign, str(sign))] += 1
            return
        if known := self.progress.findings.get(sign):
            known.more += 1
            return
        inputs: list[Scenario] = []
        spent = 0.0
        for one in reversed(self._history):  # what takes too long to be played again is no help
            spent += length(one)
            if inputs and spent > _LONGEST:
                break
            inputs.insert(0, one)
        fewest = None
        try:
            # What happens only when it is looked whether the driver still answers, has more to it than the inputs.
            for alone in (True, False):
                smaller = Smaller(
                    partial(self.happens, sign=sign, alone=alone), self._limits,
                    lambda tries, parts: self._doing(f"{sign}: try {tries}, {parts} parts"),
                )  # fmt: skip
                if fewest := smaller.run(inputs):
                    break
        except KeyboardInterrupt:
            self._keep(found, inputs, None)
            raise
        self._again.stop()
        self._keep(found, inputs, fewest)

    def _keep(self, found: Found, inputs: Sequence[Scenario], fewest: Sequence[Scenario] | None) -> None:
        """Write a finding."""
        sign = found.sign
        scenario = in_a_row(fewest) if fewest else None
        kept = all(keeps_contract(one) for one in fewest or inputs)
        folder = self._out / f"{len(self.progress.findings) + 1:02d}-{_slug(sign)}"
        finding = Finding(sign, found.log, scenario, kept, folder)
        self.progress.findings[sign] = finding
        self._write(finding, inputs)

    def happens(self, inputs: Sequence[Scenario], sign: Sign, alone: bool) -> bool:
        """Whether the same goes wrong when inputs are played in a fresh guest.

        Args:
            inputs: in their order.
            sign: what.
            alone: only look at what the kernel says of it, if that tells.
        """
        again = self._again
        again.start()
        try:
            for one in inputs:
                again.begin(one)
                for deed in one.guest:
                    again.run(deed.run)
                time.sleep(pause(one))
                again.catch_up()
        except GuestTimeoutError:
            if sign == HANG:
                return True
        except VmError:
            pass  # it tells below why
        if alone and sign not in (HANG, STUCK) and sign.what != "contract":
            time.sleep(SETTLE)
            return any(found.sign == sign for found in again.found())
        return any(found.sign == sign for found in again.what_is_wrong())

    def _write(self, finding: Finding, inputs: Sequence[Scenario]) -> None:
        finding.folder.mkdir(parents=True, exist_ok=True)
        write_whole(finding.folder / "dmesg", "\n".join(finding.log) + "\n")
        if finding.scenario is not None:
            path = finding.folder / "scenario.toml"
            write_whole(path, finding.scenario.toml())
            write_whole(finding.folder / "replay", f"{self._how} --replay {path.name}\n")
            return
        for number, one in enumerate(inputs):
            write_whole(finding.folder / "inputs" / f"{number:03d}.toml", one.toml())


def _slug(sign: Sign) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", str(sign).lower()).strip("-")[:60]
