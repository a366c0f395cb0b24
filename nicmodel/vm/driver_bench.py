"""A bench for a driver under work: a NIC that watches its driver, a host at its other end, and a guest.

The guest stays; a driver is loaded, tried by a command, and removed, each within a time limit. A guest that has had a
crash, or whose driver cannot be removed, is exchanged for another, which starts from its snapshot.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nicmodel.client.control import Control
from nicmodel.vm.channel import GuestTimeoutError
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.kernel import KernelChoice, default_kernel
from nicmodel.vm.layout import Nic
from nicmodel.vm.namespace import namespace_for_taps
from nicmodel.vm.passt import Passt
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import install_guest_tools

if TYPE_CHECKING:
    from nicmodel.vm.coverage.recorder import Recorder

#: Addresses where the wire is a tap (RFC 5737).
_GUEST, _HOST = "192.0.2.1", "192.0.2.2"
#: Seconds for a driver to be loaded, to come up, to be removed, if nothing else is said.
_LIMIT = 15.0
#: What the kernel says of any module that is not its own.
_USUAL = re.compile(r": (loading out-of-tree module taints kernel|module verification failed: signature)")
#: What says that something went wrong, besides what has the level of an error.
_SPLAT = re.compile(r"WARNING:|BUG:|Oops|general protection fault|Call Trace|Kernel panic|NETDEV WATCHDOG|refcount_t:")
#: After one of these a guest is of no use.
_FATAL = re.compile(r"BUG:|Oops|general protection fault|Kernel panic|refcount_t:|soft lockup|blocked for more than")
_ERROR = 3
"""The level of errors in the kernel's log; worse ones are below (Linux, include/linux/kern_levels.h)."""

#: Have two queues each way; idpf has them combined only, gve apart only.
TWO_QUEUES = (
    "if ethtool -l $NETIF | grep -q '^Combined:[[:space:]]*[1-9]'; then ethtool -L $NETIF combined 2;"
    " else ethtool -L $NETIF rx 2 tx 2; fi"
)
#: Remove what drives the NIC, whatever it is called.
_FREE = """
driver=$(readlink /sys/bus/pci/devices/$1/driver/module) || exit 0
rmmod "${driver##*/}"
"""
#: Load what the kernel itself has for the NIC; its module's name.
_OWN = """
alias=$(cat /sys/bus/pci/devices/$1/modalias)
modprobe "$alias" || exit 1
driver=$(readlink /sys/bus/pci/devices/$1/driver/module) && echo "${driver##*/}" && exit
modprobe -q -r -a $(modprobe -R "$alias")
echo "no driver binds to the NIC" >&2
exit 1
"""
#: Wait for the interface, and bring it up; its name.
_UP = """
for try in $(seq 50); do
    for path in /sys/bus/pci/devices/$1/net/*; do [ -e "$path" ] && break 2; done
    sleep 0.1
done
[ -e "$path" ] || { echo "the driver has made no interface" >&2; exit 1; }
name=${path##*/}
ip addr replace "$2/24" dev "$name" && ip link set "$name" up || exit 1
# nicmodel.vm.link says why both; a driver that never says anything of its carrier has an unknown state for ever.
for try in $(seq 50); do
    case $(cat "$path/carrier" "$path/operstate" 2>/dev/null) in
        1*up) break ;;
        1*unknown) [ $try -gt 20 ] && break ;;
    esac
    sleep 0.1
done
[ "$(cat "$path/carrier" 2>/dev/null)" = 1 ] || { echo "$name has no carrier after 5 s" >&2; exit 1; }
echo "$name"
"""
#: What has been leaked, once the driver has let go of the NIC: as long as its module is there, the kernel knows its
#: functions by name. What is younger than five seconds is not told of, nor what has changed between two scans (Linux,
#: mm/kmemleak.c).
_LEAKS = """
echo $1 > /sys/bus/pci/devices/$1/driver/unbind || exit 1
cd /sys/kernel/debug
sleep 6
echo scan > kmemleak; echo scan > kmemleak; cat kmemleak
"""

#: Seconds for that, besides what a driver may take to let go: all memory is looked through, twice.
_LEAKS_LIMIT = 60.0


@dataclass(frozen=True)
class Part:
    """A part of a try.

    Attributes:
        name: "load", "up", "command" or "remove"; "leaks" with a kernel that looks for them, before the last.
        good: Whether it did what it should.
        seconds: How long it took.
        said: In a sentence what it came to.
        output: What a command printed.
    """

    name: str
    good: bool
    seconds: float
    said: str
    output: str = ""


@dataclass
class Verdict:
    """What a try has shown.

    Attributes:
        parts: In order; what was not reached is missing.
        log: The kernel's log since the driver was loaded.
        complaints: Those lines of it that are errors, warnings with a call trace, or crashes.
        findings: How the driver has broken the contract, as `Finding.as_dict` gives it.
        device: What the device counted meanwhile, in a line for each kind.
        lost: Why the guest is of no use any more; empty if it is.
    """

    parts: list[Part] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    device: dict[str, str] = field(default_factory=dict)
    lost: str = ""

    @property
    def trouble(self) -> list[str]:
        """What is wrong, in a few words each; nothing if all is well."""
        found = [f"{part.name}: {part.said}" for part in self.parts if not part.good]
        if self.complaints:
            found.append("the kernel complains")
        if self.findings:
            found.append(_count(len(self.findings), "finding") + " of the contract checker's")
        return found


class DriverBench:
    """Use it as a context manager; the first guest starts with `prepare`, or with the first try.

    Args:
        kernel: The guest's.
        serve: Options for ``nicmodel serve``; with ``--wire`` among them the NIC's other end is not this host.
        memory: The guest's.
        tools: Have the programs of `guest/`, and ncdevmem, in the guest.
        timeout: Seconds for a command.
        recorder: What records the driver's coverage in its guests; None: nothing does.
        limit: Seconds for a driver to be loaded, to come up, to be removed; a guest whose driver takes longer is lost.

    Attributes:
        control: Control socket of the NIC's server.
        prefix: Put before a command that is to run on the host at the NIC's other end.
        command: What is run if nothing else is asked for: it reaches the host.
        environment: For commands, as the kernel's own driver tests call them: ``LOCAL_V4`` and ``REMOTE_V4``, the
            addresses of guest and host. A command also has ``NETIF``, the interface.
    """

    def __init__(
        self,
        kernel: KernelChoice | None = None,
        *,
        serve: Sequence[str] = (),
        memory: str = "1G",
        tools: bool = False,
        timeout: float = 60,
        recorder: Recorder | None = None,
        limit: float = _LIMIT,
    ) -> None:
        self._kernel = kernel or default_kernel()
        self._serve, self._memory, self._tools, self._timeout = serve, memory, tools, timeout
        self._recorder, self._limit = recorder, limit
        self._stack = ExitStack()
        self._running = ExitStack()
        self._guest: Guest | None = None
        self.environment = {"LOCAL_V4": _GUEST}
        self.command = "true"
        self.prefix: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        try:
            self._start_server()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._drop_guest()
        finally:
            self._stack.close()

    def _start_server(self) -> None:
        """The NIC, and what is at its other end: this host's own network stack."""
        words = ["--check", *self._serve]
        if any(word.split("=")[0] == "--wire" for word in self._serve):
            self._server = self._stack.enter_context(NicServer(words))
        elif namespace := namespace_for_taps():
            self._stack.enter_context(namespace)
            self._server = self._stack.enter_context(NicServer([*words, "--wire", "tap:tap0"], prefix=namespace.prefix))
            namespace.ip("addr", "add", f"{_HOST}/24", "dev", "tap0")
            namespace.ip("link", "set", "tap0", "up")
            self.prefix = namespace.prefix
            self.environment["REMOTE_V4"] = _HOST
            self.command = "ping -c 3 -i 0.2 -W 2 $REMOTE_V4"
        else:
            passt = self._stack.enter_context(Passt())
            self._server = self._stack.enter_context(NicServer([*words, "--wire", f"stream:{passt.socket}"]))
            self.environment |= {"LOCAL_V4": passt.address, "REMOTE_V4": passt.gateway}
            # Few hosts let a user answer pings (net.ipv4.ping_group_range).
            self.command = "arping -c 3 -I $NETIF $REMOTE_V4"
        self.control = self._server.control
        self._control = self._stack.enter_context(Control(self.control))

    def prepare(self) -> None:
        """Have a guest whose NIC has no driver."""
        if self._guest is not None:
            return
        config = GuestConfig(nics=[Nic(self._server.sockets[0])], kernel=self._kernel, memory=self._memory)
        guest = self._running.enter_context(Guest(config, recorder=self._recorder))
        if self._tools:
            install_guest_tools(guest)
        self._address = guest.pci_addresses()["nic0"]
        guest.run(["sh", "-c", _FREE, "free", self._address])
        self._guest = guest

    def _drop_guest(self) -> None:
        """End the guest as it stands and lies."""
        if self._guest is not None:
            self._guest.kill()
            self._guest = None
        self._running.close()

    def try_out(
        self,
        modules: Mapping[str, bytes] | None,
        command: str | None = None,
        told: Callable[[Part], None] = lambda part: None,
    ) -> Verdict:
        """Load a driver, run a command, remove the driver.

        Args:
            modules: Its modules by name, in the order in which they are loaded; None: the kernel's own driver.
            command: A line for the guest's shell; `DriverBench.command` if None.
            told: Called with each part when it is done.

        Raises:
            VmError: The guest does not start, or the server has gone.
        """
        self.prepare()
        assert self._guest is not None
        verdict = Verdict()
        _Try(self._guest, self._control, self._address, verdict, told, self._limit).run(
            modules, self.command if command is None else command, self.environment, self._timeout
        )
        if verdict.lost:
            self._drop_guest()
        return verdict


class _Try:
    """One driver in a guest."""

    def __init__(
        self, guest: Guest, control: Control, address: str, verdict: Verdict, told: Callable[[Part], None], limit: float
    ) -> None:
        self._guest, self._control, self._address, self._verdict, self._told = guest, control, address, verdict, told
        self._limit = limit
        self._loaded: list[str] = []
        self._leaked: list[str] = []
        self._finds_leaks = "DEBUG_KMEMLEAK" in (guest.kernel.config or ())
        self._environment: dict[str, str] = {}

    def run(
        self, modules: Mapping[str, bytes] | None, command: str, environment: Mapping[str, str], timeout: float
    ) -> None:
        """All of it; what it shows goes into the verdict."""
        marker = f"nicmodel: try {time.monotonic_ns()}"
        console = self._guest.console.stat().st_size
        self._control.findings(clear=True)
        if self._finds_leaks:
            self._guest.run("echo clear > /sys/kernel/debug/kmemleak")  # of those before
        before = self._control.stat()[0]
        self._guest.run(["sh", "-c", 'echo "$1" >/dev/kmsg', "mark", marker])
        self._environment = dict(environment)
        up = before
        good = self._part("load", lambda: self._load(modules)) and self._part("up", self._up)
        if good:
            up = self._control.stat()[0]
            self._part("command", lambda: self._command(command, timeout))
        used = self._control.stat()[0]
        if good and self._finds_leaks and not self._verdict.lost:
            self._part("leaks", self._leaks)
        if self._loaded and not self._verdict.lost:
            self._part("remove", self._remove)
        self._read_log(marker, console)
        self._verdict.log += self._leaked
        self._verdict.findings = self._control.findings()
        self._verdict.device = summary(before, up, used, self._control.stat()[0])

    def _part(self, name: str, work: Callable[[], tuple[bool, str, str]]) -> bool:
        """Do a part; whether it went well. A guest that does not answer any more is lost."""
        started = time.monotonic()
        output = ""
        try:
            good, said, output = work()
        except GuestTimeoutError:
            good, said = False, "it does not end"
            self._verdict.lost = f"{name} does not end"
        except VmError as error:  # the kernel's panic, or QEMU's end
            good, said = False, str(error).partition("\n")[0]
            self._verdict.lost = "the guest crashed"
        part = Part(name, good, time.monotonic() - started, said, output)
        self._verdict.parts.append(part)
        self._told(part)
        return good

    def _load(self, modules: Mapping[str, bytes] | None) -> tuple[bool, str, str]:
        if modules is None:
            return self._load_own()
        for name, content in modules.items():
            file = f"/tmp/{name}.ko"
            self._guest.put(content, file, 0o644)
            # Modules of the kernel's own that it needs; insmod only loads the file.
            needed = self._guest.run(["modinfo", "-F", "depends", file]).stdout.strip().replace(",", " ").split()
            stock = [one for one in needed if one not in modules]
            if stock:
                result = self._guest.run(["modprobe", "-a", *stock], timeout=self._limit, check=False)
                if result.status:
                    return False, f"{name} needs {' '.join(stock)}: {result.stderr.strip()}", ""
            result = self._guest.run(["insmod", file], timeout=self._limit, check=False)
            if result.status:
                died = f"insmod was ended by signal {-result.status}"
                return False, result.stderr.strip() or died, ""
            self._loaded.append(name)
        return True, " ".join(modules), ""

    def _load_own(self) -> tuple[bool, str, str]:
        result = self._guest.run(["sh", "-c", _OWN, "load", self._address], timeout=self._limit, check=False)
        if result.status:
            return False, result.stderr.strip() or f"status {result.status}", ""
        self._loaded = [result.stdout.strip()]
        return True, f"{self._loaded[0]}, the kernel's own", ""

    def _up(self) -> tuple[bool, str, str]:
        words = ["sh", "-c", _UP, "up", self._address, self._environment["LOCAL_V4"]]
        result = self._guest.run(words, timeout=self._limit, check=False)
        if result.status:
            return False, result.stderr.strip() or f"status {result.status}", ""
        self._environment["NETIF"] = result.stdout.strip()
        return True, f"{self._environment['NETIF']} {self._environment['LOCAL_V4']}", ""

    def _command(self, command: str, timeout: float) -> tuple[bool, str, str]:
        settings = [f"{name}={value}" for name, value in self._environment.items()]
        process = self._guest.start(["env", *settings, "bash", "-c", f"exec 2>&1\n{command}"])
        process.close_input()
        try:
            status = process.wait(timeout).status
        except GuestTimeoutError:
            process.kill()
            return False, f"not finished after {timeout:g} s", process.output()
        return status == 0, f"status {status}", process.output()

    def _leaks(self) -> tuple[bool, str, str]:
        words = ["sh", "-c", _LEAKS, "leaks", self._address]
        result = self._guest.run(words, timeout=_LEAKS_LIMIT + self._limit, check=False)
        if result.status:
            return False, result.stderr.strip() or f"status {result.status}", ""
        objects = re.split(r"^(?=unreferenced object )", result.stdout, flags=re.MULTILINE)
        own = [text for text in objects if any(f"[{name}]" in text for name in self._loaded)]
        self._leaked = "".join(own).splitlines()
        return not own, f"{_count(len(own), 'object')} that nothing points to any more" if own else "none", ""

    def _remove(self) -> tuple[bool, str, str]:
        for name in reversed(self._loaded):
            result = self._guest.run(["rmmod", name], timeout=self._limit, check=False)
            if result.status:
                self._verdict.lost = f"{name} cannot be removed"
                return False, result.stderr.strip() or f"rmmod was ended by signal {-result.status}", ""
        return True, " ".join(reversed(self._loaded)), ""

    def _read_log(self, marker: str, console: int) -> None:
        """What the kernel has said; from the console if the guest does not answer."""
        verdict = self._verdict
        lines: list[tuple[int, str]] = []
        try:
            said = self._guest.run(["dmesg", "-r"], timeout=10).stdout.rpartition(marker)[2]
            for line in said.splitlines()[1:]:
                found = re.match(r"<(\d+)>(.*)", line)
                lines.append((int(found[1]) & 7, found[2]) if found else (_ERROR + 1, line))
        except VmError:
            verdict.lost = verdict.lost or "it does not answer"
            with suppress(OSError), self._guest.console.open("rb") as file:
                file.seek(console)
                said = file.read().decode(errors="replace").rpartition(marker)[2]
                lines = [(_ERROR + 1, line) for line in said.splitlines()[1:]]
        lines = [(level, text) for level, text in lines if not _USUAL.search(text)]
        verdict.log = [text for _, text in lines]
        verdict.complaints = [text for level, text in lines if level <= _ERROR or _SPLAT.search(text)]
        if any(_FATAL.search(text) for text in verdict.log):
            verdict.lost = verdict.lost or "its kernel crashed"


def summary(
    before: Mapping[str, Any], up: Mapping[str, Any], used: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, str]:
    """What a NIC has counted, in a line for each kind.

    Args:
        before: Its state (`nicmodel.observe.snapshot`) before the driver came.
        up: When the interface was up.
        used: After the command.
        after: When the driver was gone.
    """
    told = {}
    commands = _more(before["admin"], after["admin"])
    refused = {name: count for name, count in commands.items() if not name.endswith(" PASSED")}
    told["admin"] = _count(sum(commands.values()), "command")
    told["admin"] += f", refused: {_named(refused)}" if refused else ", none refused" if commands else ""
    for way, counter in (("rx", "frames"), ("tx", "packets")):
        queues = zip(before[f"{way}_queues"], after[f"{way}_queues"], strict=True)
        moved = {f"{way}{new['queue']}": new[counter] - old[counter] for old, new in queues}
        told[way] = f"{_count(sum(moved.values()), counter[:-1])}" + (
            f" ({_named({name: count for name, count in moved.items() if count})})" if any(moved.values()) else ""
        )
    told["drops"] = _named(_more(before["drops"], after["drops"])) or "none"
    told["interrupts"] = f"{sum(used['interrupts']):,}"  # they are counted from 0 for each driver
    posted, left = _posted(up), _posted(used)
    if posted and left:
        fewer = {name: f"{count} -> {left[name]}" for name, count in posted.items() if left.get(name, count) < count}
        told["buffers"] = "posted to the receive queues as before the command" if not fewer else (
            "posted before the command and after it: " + ", ".join(f"{name} {text}" for name, text in fewer.items())
        )  # fmt: skip
    if faults := after["dma_faults"] - before["dma_faults"]:
        told["DMA faults"] = str(faults)
    return told


def _posted(nic: Mapping[str, Any]) -> dict[str, int]:
    """Buffers that wait for frames, by receive queue."""
    return {
        f"rx{queue['queue']}": (queue["buffer_tail"] - queue["buffer_head"]) % queue["positions"]
        for queue in nic["rx_queues"]
        if queue["active"]
    }


def _more(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    counts = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in counts.items() if count}


def _named(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
