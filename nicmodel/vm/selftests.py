"""The kernel's own network driver selftests, run against the NIC in a guest and held against what is expected of them.

The tests are tools/testing/selftests/drivers/net of the Linux source, unmodified. Each program runs as its
README.rst says, with two linked NICs, the second in a network namespace as the remote end, on NICs whose driver has
just been bound. `selftests.toml` says how to run each program; `selftests-<device>.toml` what the driver of a kind of
NIC wants before it, and, for every case that does not pass, why. The tests are always those of the newest kernel, as
Documentation/dev-tools/kselftest.rst asks of them that they run on older ones; what is known of an older kernel is in a
file of its own, `selftests-<device>-<version>.toml`.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
import time
import tomllib
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from nicmodel.nearest import did_you_mean
from nicmodel.vm import link
from nicmodel.vm.coverage.recorder import Recorder
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.kernel import KernelChoice, default_kernel
from nicmodel.vm.layout import Nic
from nicmodel.vm.selftests_disk import FOLDER, UNPACK, build_disk
from nicmodel.vm.server import NicServer

FILES = Path(__file__).parent
DEFAULT_DEVICE = "gvnic"

_RESULT = re.compile(r"(?P<bad>not )?ok \d+ (?P<name>\S+)(?: # (?P<directive>\w+) ?(?P<said>.*))?")
_EXPECTED = re.compile(r"(?P<outcomes>\w+(?: or \w+)*)(?: \((?P<said>[^)]+)\))?: (?P<reason>.+)")
_TROUBLE = re.compile(
    r"BUG:|WARNING:|Oops|Invalid RX buffer_id|RX buffer_id is not|Invalid TX completion tag|No pending data completion"
    r"|Timeout on tx queue|Unrecoverable platform error"
)
_FATAL = re.compile(r"BUG:|Oops|Kernel panic")


@dataclass(frozen=True)
class Result:
    """What became of one case.

    Attributes:
        case: Its name as the test prints it, without the program's; `#3` if it printed none.
        outcome: "pass", "fail", "skip" or "xfail" as it says; "crash" if the kernel did, "none" if the program ended.
        said: What it says of a skip, the last line of a failure's traceback, or of a crash the kernel's first.
    """

    case: str
    outcome: str
    said: str = ""


@dataclass(frozen=True)
class Expectation:
    """What is expected of some cases that do not pass.

    Attributes:
        pattern: Names of cases, as a shell's pattern.
        outcomes: Any of these; several where time decides.
        reason: Why, with its place in the driver's or the test's source.
        said: What a failure says, or a part of it; "": anything.
        inherited: It is another version's, of which a case may have another expectation here.
    """

    pattern: str
    outcomes: tuple[str, ...]
    reason: str
    said: str = ""
    inherited: bool = False

    @classmethod
    def parse(cls, pattern: str, text: str) -> Self:
        """From the file's form, `outcome: reason` or `pass or fail (what it says): reason`."""
        found = _EXPECTED.fullmatch(text)
        if not found:
            raise VmError(f"expectation of '{pattern}': write 'outcome: reason', not '{text}'")
        return cls(pattern, tuple(found["outcomes"].split(" or ")), found["reason"], found["said"] or "")

    def fits(self, result: Result) -> bool:
        """Whether `result` is one that is expected."""
        return result.outcome in self.outcomes and (result.outcome != "fail" or self.said in result.said)


_PASS = Expectation("*", ("pass",), "")


@dataclass(frozen=True)
class Program:
    """A test program: how it is run, and what is expected of it.

    Attributes:
        name: What the user calls it.
        path: Its file, relative to the selftests.
        nics: Which pair of NICs it gets, a key of `Recipe.nics`.
        setup: Shell commands before it, in the guest; `$NETIF` is the interface.
        cases: How many cases it has; 0: it ends before the first; None: nothing is known of it, and nothing expected.
        quick: Cases of a quick run, as patterns; none: all of them.
        slow: A quick run leaves the program out.
        arguments: The program's arguments.
        timeout: Seconds, generous.
        expected: The outcomes of the cases that do not pass.
    """

    name: str
    path: str
    cases: int | None
    nics: str = "plain"
    setup: str = "true"
    quick: tuple[str, ...] = ()
    slow: bool = False
    arguments: tuple[str, ...] = ()
    timeout: float = 600
    expected: tuple[Expectation, ...] = ()

    def expectation(self, case: str) -> Expectation | None:
        """The first that names `case`; None: it is to pass."""
        return next((entry for entry in self.expected if fnmatch.fnmatchcase(case, entry.pattern)), None)


@dataclass(frozen=True)
class Outcome:
    """One program's run.

    Attributes:
        program: What was run.
        results: By case, in order.
        surprises: How reality differs from what is expected; empty if it does not.
        seconds: Wall-clock time.
        log: All it printed, and what the kernel logged meanwhile.
    """

    program: Program
    results: tuple[Result, ...]
    surprises: tuple[str, ...]
    seconds: float
    log: str

    @property
    def counts(self) -> Counter[str]:
        """Number of cases by outcome."""
        return Counter(result.outcome for result in self.results)


@dataclass(frozen=True)
class Recipe:
    """How the programs are run with a driver, and what is expected.

    Attributes:
        kernel: The release whose outcomes it knows, such as "7.2".
        programs: By name, in the order in which they run.
        inapplicable: Programs that are not run, by name or file, and why.
        device: What `nicmodel serve --device` calls the NIC.
        driver: The module of its driver.
        nics: Arguments of `nicmodel serve` for the pairs of NICs.
    """

    kernel: str
    programs: Mapping[str, Program]
    inapplicable: Mapping[str, str]
    device: str = DEFAULT_DEVICE
    driver: str = "gve"
    nics: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, device: str = DEFAULT_DEVICE, folder: Path = FILES) -> Self:
        """The recipe of a kind of NIC with the newest kernel.

        Args:
            device: What `nicmodel serve --device` calls it.
            folder: Where `selftests.toml` and `selftests-<device>.toml` are.

        Raises:
            VmError: Nothing is known of it, or of a program that is not there.
        """
        path = folder / f"selftests-{device}.toml"
        if not path.exists():
            raise VmError(f"there is no {path.name}: say one of {', '.join(known_devices(folder))}")
        own = tomllib.loads(path.read_text("utf-8"))
        inapplicable = own["inapplicable"]
        tables = tomllib.loads((folder / "selftests.toml").read_text("utf-8"))["program"]
        _check_names(path, own["program"], tables)
        programs = {name: _program(name, table, own["program"].get(name, {})) for name, table in tables.items()}
        kept = {
            name: one
            for name, one in programs.items()
            if name not in inapplicable and Path(one.path).name not in inapplicable
        }
        return cls(own["kernel"], kept, inapplicable, own["device"], own["driver"], own["nics"])

    def of_kernel(self, release: str, folder: Path = FILES) -> Self:
        """The recipe with the outcomes of an older kernel, if they are known; else as it is.

        Args:
            release: The kernel's, such as "6.12.117+deb13-cloud-amd64".
            folder: Where the files `selftests-<device>-<version>.toml` are. They have what ends otherwise than in this
                recipe.

        Returns:
            A program that is not in the file has not been run there: of it, nothing is expected.
        """
        for path in folder.glob(f"selftests-{self.device}-*.toml"):
            content = tomllib.loads(path.read_text("utf-8"))
            found = replace(self, kernel=content["kernel"])
            if found.is_known(release):
                known = content["program"]
                _check_names(path, known, self.programs)
                programs = {name: _otherwise(one, known.get(name)) for name, one in self.programs.items()}
                return replace(found, programs=programs)
        return self

    def chosen(self, names: Sequence[str]) -> list[Program]:
        """The programs of these names, all if none is given.

        Args:
            names: Programs by name or file, or folders: `devmem`, `hw/devmem.py`, `hw`, `drivers/net/hw`.

        Raises:
            VmError: There is no such program.
        """
        found = {name: [one for one in self.programs.values() if _called(one, name)] for name in names}
        if unknown := [name for name, programs in found.items() if not programs]:
            among = f"say one of {', '.join(self.programs)}{did_you_mean(unknown[0], self.programs)}"
            raise VmError(f"no test '{unknown[0]}' to run: {self.inapplicable.get(unknown[0], among)}")
        wanted = [program for programs in found.values() for program in programs]
        return [program for program in self.programs.values() if not names or program in wanted]

    def of_tree(self, selftests: Path) -> Self:
        """The recipe for tests that were built of another source.

        Args:
            selftests: As `nicmodel.vm.tools.build_selftests` leaves them.

        Returns:
            Without programs that are not there, and with those that are new there, of which nothing is expected.
        """
        lines = (selftests / "kselftest-list.txt").read_text("utf-8").split()
        paths = [line.replace(":", "/", 1) for line in lines]
        kept = {name: program for name, program in self.programs.items() if program.path in paths}
        known = {program.path for program in kept.values()}
        for path in paths:
            file = path.removeprefix(_DRIVERS_NET)
            stem = Path(file).stem
            if path not in known and Path(file).name not in self.inapplicable and stem not in self.inapplicable:
                name = file if stem in self.programs else stem
                kept[name] = Program(name, path, cases=None)
        return replace(self, programs=kept)

    def is_known(self, release: str) -> bool:
        """Whether the outcomes are those of this release of Linux, such as "7.3.4-cloud-amd64"."""
        return release.startswith(f"{self.kernel}.")


#: Where the kernel has them, below tools/testing/selftests.
_DRIVERS_NET = "drivers/net/"


def _called(program: Program, name: str) -> bool:
    """Whether `name` is the program's, its file's or that of a folder above it."""
    path = _DRIVERS_NET + name.strip("/").removeprefix(_DRIVERS_NET.rstrip("/")).lstrip("/")
    return name == program.name or path == program.path or program.path.startswith(path.rstrip("/") + "/")


def _check_names(path: Path, named: Iterable[str], programs: Container[str]) -> None:
    if strangers := [name for name in named if name not in programs]:
        raise VmError(f"{path.name}: there is no program '{strangers[0]}'")


def _program(name: str, table: Mapping[str, Any], own: Mapping[str, Any]) -> Program:
    """A program as `selftests.toml` has it, and what a driver adds."""
    fields = {**table, **own}
    expected = tuple(Expectation.parse(pattern, text) for pattern, text in fields.pop("expected", {}).items())
    for key in ("quick", "arguments"):
        fields[key] = tuple(fields.get(key, ()))
    return Program(name=name, expected=expected, **fields)


def _otherwise(program: Program, table: Mapping[str, Any] | None) -> Program:
    """A program on an older kernel: its own expectations there come before those that it shares with the newest."""
    if table is None:
        return replace(program, cases=None, expected=())
    own = [Expectation.parse(pattern, text) for pattern, text in table.get("expected", {}).items()]
    shared = [replace(entry, inherited=True) for entry in program.expected]
    return replace(program, cases=table.get("cases", program.cases), expected=(*own, *shared))


def known_devices(folder: Path = FILES) -> list[str]:
    """The kinds of NICs of which outcomes are known, by the names that `nicmodel serve --device` has for them."""
    return sorted({path.stem.split("-")[1] for path in folder.glob("selftests-*.toml")})


def known_versions(device: str = DEFAULT_DEVICE, folder: Path = FILES) -> list[str]:
    """The versions of Linux of which outcomes are known with a kind of NIC, the newest first."""
    files = folder.glob(f"selftests-{device}*.toml")
    versions = [str(tomllib.loads(path.read_text("utf-8"))["kernel"]) for path in files]
    return sorted(versions, key=lambda version: [int(number) for number in version.split(".")], reverse=True)


def parse_ktap(text: str) -> list[Result]:
    """The results in a test's output, in order (Linux, Documentation/dev-tools/ktap.rst).

    Cases that the plan announces and that never ended are there too, with outcome "none".
    """
    results = []
    planned = 0
    trouble = ""
    for line in text.splitlines():
        if plan := re.fullmatch(r"1\.\.(\d+)", line):
            planned = int(plan[1])
        elif found := _RESULT.match(line):
            outcome = (found["directive"] or "").lower()
            if outcome not in ("skip", "xfail"):
                outcome = "fail" if found["bad"] else "pass"
            said = trouble if outcome == "fail" else found["said"] or ""
            results.append(Result(found["name"].partition(".")[2], outcome, said))
            trouble = ""
        elif found := re.match(r"# (?:Exception\||Check\|?) *(?P<said>\S.*)", line):
            trouble = found["said"]
    results += (Result(f"#{number}", "none") for number in range(len(results) + 1, planned + 1))
    return results


def interrupted(results: Sequence[Result], fatal: str, dead: str) -> list[Result]:
    """The results of a program in the midst of which the kernel has crashed, or the guest fallen silent.

    The first case that has not ended is the one in which that happened.

    Args:
        results: As far as they go.
        fatal: The kernel's line; empty if there is none.
        dead: What is known of the guest otherwise; empty if it still answers.
    """
    changed = list(results)
    first = next((number for number, result in enumerate(results) if result.outcome == "none"), len(results))
    if first == len(results):
        if results and not dead:  # the kernel has complained in passing, and the program ended all the same
            return changed
        changed.append(Result(f"#{first + 1}", "none"))
    changed[first] = replace(changed[first], outcome="crash" if fatal else "none", said=fatal.strip() or dead)
    return changed


def judge(program: Program, results: Sequence[Result], *, quick: bool = False) -> list[str]:
    """How `results` differ from what is expected, in sentences; none if they do not."""
    surprises = []
    if program.cases is None:
        return [] if results else [f"{program.name}: no case has run"]
    if program.cases == 0:
        return [f"{program.name}: {len(results)} cases, expected none"] if results else []
    for result in results:
        expectation = program.expectation(result.case) or _PASS
        if not expectation.fits(result):
            said = f" ({result.said})" if result.said else ""
            wanted = " or ".join(expectation.outcomes) + (f" ({expectation.said})" if expectation.said else "")
            surprises.append(f"{program.name}: {result.case}: {result.outcome}{said}, expected {wanted}")
    if not quick:
        if len(results) != program.cases:
            surprises.append(f"{program.name}: {len(results)} cases, expected {program.cases}")
        surprises += (
            f"{program.name}: no case {entry.pattern}"
            for entry in program.expected
            if not entry.inherited and not any(program.expectation(result.case) is entry for result in results)
        )
    elif not results:
        surprises.append(f"{program.name}: no case has run")
    else:
        # Cases are renamed from one kernel to the next: a pattern that fits none would leave them out silently.
        surprises += (
            f"{program.name}: no case {pattern}, which the quick run names"
            for pattern in program.quick
            if not any(fnmatch.fnmatchcase(result.case, pattern) for result in results)
        )
    return surprises


_BIND = (
    """
set -e
cd /sys/bus/pci/drivers/$1
shift
for nic in 0000:*; do [ ! -e $nic ] || echo $nic >unbind; done
ip netns del peer 2>/dev/null || true
ip netns add peer
number=0
for nic in "$@"; do
    echo $nic >bind
    # Not every driver has registered its interface by then.
    until [ -e /sys/class/net/eth$number ]; do sleep 0.1; done
    number=$((number + 1))
done
ip link set eth1 netns peer
ip address add 192.0.2.1/24 dev eth0
ip address add 2001:db8:1::1/64 dev eth0 nodad
ip -n peer address add 192.0.2.2/24 dev eth1
ip -n peer address add 2001:db8:1::2/64 dev eth1 nodad
ip link set eth0 up
ip -n peer link set lo up
ip -n peer link set eth1 up
ip -n peer route add 2001:db8:2::/64 via 2001:db8:1::1
"""
    + f"until {link.is_up('eth0')}; do sleep 0.1; done\n"
)
"""Bind a driver to two NICs anew, and to no others: eth0, and eth1 in namespace "peer"."""

ENVIRONMENT = {
    "NETIF": "eth0",
    "LOCAL_V4": "192.0.2.1",
    "LOCAL_V6": "2001:db8:1::1",
    "REMOTE_V4": "192.0.2.2",
    "REMOTE_V6": "2001:db8:1::2",
    "LOCAL_PREFIX_V6": "2001:db8:2::0/64",
    "REMOTE_TYPE": "netns",
    "REMOTE_ARGS": "peer",
}
"""The environment variables of the tests: drivers/net/README.rst."""


class Bench:
    """A guest with a pair of NICs in which the programs run.

    It starts with the first program, and anew after a crash and for a program that wants other NICs. Use it as a
    context manager.

    Args:
        recipe: The NICs, and their driver.
        kernel: The guest's kernel.
        modules: Instead of the stock ones of the same names.
        tree: The source that the selftests are built of; None: that of Debian's kernel.
        recorder: Records which code each program has the driver run, with its name as context.

    Attributes:
        kernel_version: As `uname -r` prints it, once a guest has been started.
    """

    def __init__(
        self,
        recipe: Recipe,
        kernel: KernelChoice | None = None,
        modules: Sequence[Path] = (),
        tree: Path | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.recipe = recipe
        self.kernel = kernel or default_kernel()
        self.modules = modules
        self.tree = tree
        self._recorder = recorder
        self.kernel_version = ""
        self._running = ExitStack()
        self._guest: Guest | None = None
        self._nics = ""
        self._addresses: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def run(self, program: Program, *, quick: bool = False) -> Outcome:
        """Run one program on NICs whose driver has just been bound.

        Args:
            program: The program.
            quick: Only its cases for a quick run.

        A guest that crashes or no longer answers is an outcome; the next program gets another one.

        Raises:
            VmError: The guest could not be started, or the NICs set up.
        """
        if self._recorder:
            self._recorder.context(program.name)
        guest = self._guest if self._guest and self._nics == program.nics else self._start(program.nics)
        guest.run(["bash", "-c", _BIND, "bind", self.recipe.driver, *self._addresses], timeout=120)
        environment = dict(ENVIRONMENT)
        if guest.accel == "tcg":
            environment["KSFT_MACHINE_SLOW"] = "yes"  # some tests are then lenient about time
        marker = f"nicmodel: {program.name}"
        arguments = [*program.arguments, *(word for pattern in program.quick if quick for word in ("-t", pattern))]
        folder, _, file = f"{FOLDER}/{program.path}".rpartition("/")
        command = f"""
            echo {shlex.quote(marker)} >/dev/kmsg
            export {" ".join(f"{name}={value}" for name, value in environment.items())}
            cd {folder} && {{ {program.setup.strip()}; }} &&
            exec timeout -k 20 {program.timeout} python3 -u ./{file} {shlex.join(arguments)} 2>&1
        """
        started = time.monotonic()
        process = guest.start(command)
        process.close_input()
        dead = ""
        try:
            # The guest's own clock ends a test that hangs; a kernel that hangs as well has this long.
            output = process.wait(program.timeout + 120).stdout
            kernel_log = guest.dmesg().rpartition(marker)[2]
        except VmError:
            output = process.output()
            dead, kernel_log = "the guest no longer answers", guest.console_tail().rpartition(marker)[2]
        seconds = time.monotonic() - started
        results = parse_ktap(output)
        complaints = [line for line in kernel_log.splitlines() if _TROUBLE.search(line)]
        fatal = next((line for line in kernel_log.splitlines() if _FATAL.search(line)), "")
        if dead or fatal:
            results = interrupted(results, fatal, dead)
            guest.kill()
            self._guest = None
        surprises = judge(program, results, quick=quick)
        if not any(result.outcome == "crash" for result in results):
            surprises += (f"{program.name}: the kernel complains: {line}" for line in complaints)
        log = f"{output}\n\nThe kernel's log meanwhile:\n{kernel_log}"
        return Outcome(program, tuple(results), tuple(surprises), seconds, log)

    def _start(self, nics: str) -> Guest:
        """Start the server of a pair of NICs and a guest with the selftests in it, instead of those that run."""
        self._running.close()
        words = ["--device", self.recipe.device, *shlex.split(self.recipe.nics[nics]), "--wire", "link"]
        server = self._running.enter_context(NicServer(words, sockets=2))
        config = GuestConfig(
            nics=[Nic(socket) for socket in server.sockets],
            memory="2G",
            kernel=self.kernel,
            modules=self.modules,
            disks=[build_disk(self.kernel.find(), self.tree)],
            prepare=UNPACK,
        )
        guest = self._running.enter_context(Guest(config, recorder=self._recorder))
        self._guest, self._nics, self.kernel_version = guest, nics, guest.kernel_version
        # PCI addresses are in the order of the NICs.
        driver = self.recipe.driver
        self._addresses = guest.run(f"modprobe {driver}; ls /sys/bus/pci/drivers/{driver} | grep ^0000:").stdout.split()
        return guest
