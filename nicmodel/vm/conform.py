"""A driver is put through what a device may do, and through what it may not, and it is seen what becomes of it.

Every part is a try of its own (`nicmodel.vm.driver_bench`): the driver is loaded, brought up, used and removed. In an
ordinary try it has to work and to keep the contract. In each weather, which keeps the contract too, it must not lose
anything. A fault is over after some seconds; then the driver has to work again, by itself or by being taken down and
up, and neither it nor the kernel may come to harm.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from nicmodel.client.behaviour import log_lines
from nicmodel.client.bringup import last_steps
from nicmodel.client.control import Control, ControlError
from nicmodel.vm.coverage.recorder import Recorder
from nicmodel.vm.driver_bench import TWO_QUEUES, DriverBench, Part, Verdict
from nicmodel.vm.errors import VmError
from nicmodel.vm.qemu import spawn

#: Of the form that reports are saved in; grows when a field changes its meaning or goes away.
VERSION = 1
#: Seconds that a fault lasts; the traffic under it goes on a little longer.
FAULT = 3.0
#: Bytes that are sent to the host and back, and compared.
_BYTES = 4 << 20
#: Seconds for that, in a weather as well.
_PATIENCE = 60
#: Lines of a kernel's complaints that a report keeps.
_MOST = 40
#: The last lines of what a command has printed that did not end well.
_LAST = 8

#: The host's end: what it is sent by TCP it sends back.
_ECHO = """
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.settimeout(120)
        try:
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)
        except OSError:
            pass  # the guest has given up
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
with Server((sys.argv[1], 0), Echo) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
"""

#: The guest's: random bytes there and back, both ways at once; each has to come back as it was.
_TRANSFER = """
import os, socket, sys, threading
address, port, count, limit = sys.argv[1], *map(int, sys.argv[2:])
data = os.urandom(count)
with socket.create_connection((address, port), timeout=limit) as there:
    sender = threading.Thread(target=lambda: (there.sendall(data), there.shutdown(socket.SHUT_WR)), daemon=True)
    sender.start()
    back = bytearray()
    while part := there.recv(1 << 16):
        back += part
if bytes(back) != data:
    sys.exit(f"{count} bytes were sent, {len(back)} came back" + (", and not the same" if len(back) == count else ""))
print(f"{count} bytes there and back")
"""

#: How a driver is helped, from little to much; `reach` is whether the host can be reached.
_RECOVERY = """
reach && { echo 'recovered: itself'; exit; }
timeout 10 ip link set $NETIF down; timeout 10 ip link set $NETIF up
reach && { echo 'recovered: down and up'; exit; }
device=$(readlink -f /sys/class/net/$NETIF/device)
timeout 60 sh -c "echo 1 > $device/remove && echo 1 > /sys/bus/pci/rescan" || exit 1
for try in $(seq 50); do
    NETIF=$(ls $device/net 2>/dev/null) && [ -n "$NETIF" ] && break
    sleep 0.1
done
ip addr replace $LOCAL_V4/24 dev $NETIF && ip link set $NETIF up
reach && { echo 'recovered: remove and rescan of the device'; exit; }
exit 1
"""
#: A setting that a driver need not offer, by name and command: as gve has no other rings before Linux 6.10.
SETTINGS = f"""
two_queues() {{ {TWO_QUEUES}; }}
setting() {{
    said=$("${{@:2}}" 2>&1) && return
    status=$?
    echo "$said"
    [[ $said == *"not supported"* ]] || return $status
    echo "not offered: $1"
}}
"""
_NOT_OFFERED = re.compile(r"^not offered: (.+)$", re.MULTILINE)
#: Whether the host can be reached.
_REACH = {True: "timeout 3 ping -c 1 -W 1 $REMOTE_V4", False: "timeout 3 arping -c 1 -w 1 -I $NETIF $REMOTE_V4"}


@dataclass(frozen=True)
class Check:
    """What one try has shown.

    Attributes:
        group: "ordinary", "weather" or "faults".
        name: the weather's seed, or the fault's name.
        good: whether the driver has stood it.
        said: in a sentence what came of it.
        evidence: lines that show it: of the kernel's log, of a command, of the contract checker.
        seconds: how long it took.
    """

    group: str
    name: str
    good: bool
    said: str
    evidence: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass
class Conformance:
    """A report on a driver.

    Attributes:
        driver: as the user has named it.
        kernel: its release.
        device: the kind of NIC.
        checks: what each try has shown, in order.
        steps: of the ladder (`nicmodel.observe.ladder`): for each its ``title``, ``need``, ``stage`` and ``now``.
        findings: rules that were broken in the ordinary try, as `Finding.as_dict` gives them.
        log: the kernel's log of the ordinary try.
        device_counts: what the device counted in it.
        coverage: by file of the driver, what of its code has run; empty: it was not recorded.
    """

    driver: str
    kernel: str
    device: str
    checks: list[Check] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    device_counts: dict[str, str] = field(default_factory=dict)
    coverage: list[dict[str, str]] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the driver has stood all of it."""
        return all(check.good for check in self.checks)

    def group(self, name: str) -> list[Check]:
        """Checks of a group."""
        return [check for check in self.checks if check.group == name]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the version of this form."""
        return asdict(self) | {"version": VERSION, "good": self.good}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The report again.

        Raises:
            ValueError: it is none, or one of another version of this form.
        """
        if data.get("version") != VERSION:
            raise ValueError(f"this is no report of version {VERSION} of its form")
        try:
            values = {one.name: data[one.name] for one in fields(cls)}
            values["checks"] = [Check(**one | {"evidence": tuple(one["evidence"])}) for one in values["checks"]]
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no report on a driver: {error}") from None


def examine(
    report: Conformance,
    bench: DriverBench,
    modules: Mapping[str, bytes] | None,
    *,
    seeds: Sequence[int],
    strength: float,
    faults: Sequence[str],
    recorder: Recorder | None = None,
    told: Callable[[Check], None] = lambda check: None,
) -> None:
    """Put a driver through all of it; what it shows goes into the report.

    Args:
        report: What is known so far.
        bench: Where.
        modules: The driver's; None: the kernel's own.
        seeds: Of the weather, a try each.
        strength: Of the weather.
        faults: By name, a try each.
        recorder: Records coverage by try, if there is one.
        told: Called with each check when it is done.

    Raises:
        VmError: The guest does not start, or the server has gone.
    """
    with _echo(bench.prefix) as port:
        work = _Examiner(report, bench, modules, port, recorder, told)
        work.ordinary()
        for seed in seeds:
            work.weather(seed, strength)
        for fault in faults:
            work.fault(fault, at_load=False)
            if fault.startswith(("admin-", "mailbox-")):
                work.fault(fault, at_load=True)


class _Examiner:
    def __init__(
        self, report: Conformance, bench: DriverBench, modules: Mapping[str, bytes] | None, port: int,
        recorder: Recorder | None, told: Callable[[Check], None],
    ) -> None:  # fmt: skip
        self._report, self._bench, self._modules, self._port = report, bench, modules, port
        self._recorder, self._told = recorder, told
        pings = bench.command.startswith("ping")
        self._reach = _REACH[pings]
        self._function = (
            f"reach() {{ for try in 1 2 3 4 5 6 7 8; do {self._reach} >/dev/null 2>&1 && return; sleep 0.3; done;"
            " return 1; }"
        )
        self._pings = (
            'lossless() { said=$("$@"); echo "$said"; [[ $said == *" 0% packet loss"* ]]; }\n'
            "lossless ping -q -c 100 -i 0.01 -s 56 -W 10 $REMOTE_V4 &&"
            " lossless ping -q -c 50 -i 0.01 -s 8000 -W 10 $REMOTE_V4"
        ) if pings else bench.command  # fmt: skip

    def _transfer(self, count: int, limit: int) -> str:
        return f"python3 -IS -c '{_TRANSFER}' $REMOTE_V4 {self._port} {count} {limit}"

    def ordinary(self) -> None:
        """Nothing but traffic, and other numbers of queues, and other rings."""
        line = (
            f"{self._function}\n{SETTINGS}{self._pings} && {self._transfer(_BYTES, _PATIENCE)} &&"
            " setting 'other numbers of queues' two_queues && setting 'other rings' ethtool -G $NETIF rx 512 &&"
            f" ip link set $NETIF down && ip link set $NETIF up && reach && {self._transfer(_BYTES, _PATIENCE)}"
        )
        verdict = self._try("ordinary", line)
        self._report.findings, self._report.log = verdict.findings, verdict.log
        self._report.device_counts = verdict.device
        with Control(self._bench.control) as control:
            self._report.steps = last_steps(control.bringup())
        self._judge(
            "ordinary", "traffic, queues and rings", verdict, _troubles(verdict), _NOT_OFFERED.findall(_output(verdict))
        )

    def weather(self, seed: int, strength: float) -> None:
        """From before the driver is loaded until it is removed."""
        self._bench.prepare()  # in calm: a guest that starts may begin with the kernel's own driver
        with Control(self._bench.control) as control:
            control.begin_scenario(f"[weather]\nseed = {seed}\nstrength = {strength}\n")
            try:
                verdict = self._try(f"weather {seed}", f"{self._pings} && {self._transfer(_BYTES, _PATIENCE)}")
            finally:
                control.end_fault()
        self._judge("weather", f"seed {seed}", verdict, _troubles(verdict))

    def fault(self, name: str, at_load: bool) -> None:
        """While the driver works, or while it is loaded."""
        context = f"fault {name}{', at load' if at_load else ''}"
        self._bench.prepare()  # as in weather
        with Control(self._bench.control) as control:
            try:
                if at_load:
                    # The driver may give up, or hang until it is over; it has to come up when it is loaded again.
                    control.add_fault(name)
                    verdict = self._try(context, "true", after={"load": control.end_fault})
                    if not any(part.name == "load" for part in verdict.parts):
                        control.end_fault()
                    again = (
                        verdict
                        if all(part.good for part in verdict.parts)
                        else self._try(context, f"{self._function}\nreach")
                    )
                    said = "" if again is verdict else "it gives up, "
                    self._settle(f"{name}, at load", verdict, again, said)
                else:
                    line = (
                        f"timeout {FAULT + 1:g} {self._transfer(1 << 30, 5)} >/dev/null 2>&1\n"
                        f"{self._function}\n{_RECOVERY}"
                    )
                    verdict = self._try(context, line, after={"up": lambda: control.add_fault(name, duration=FAULT)})
                    way = re.search(r"^recovered: (.+)$", _output(verdict), re.MULTILINE)
                    again = verdict if way else self._try(context, f"{self._function}\nreach")
                    said = "after a reload, " if not way else f"after {way[1]}, " if way[1] != "itself" else ""
                    self._settle(name, verdict, again, said)
            except ControlError as error:
                raise VmError(f"{name}: {error}") from None

    def _settle(self, name: str, during: Verdict, again: Verdict, said: str) -> None:
        """Judge a driver by what it does in a fault, and by what it does afterwards."""
        harm, evidence = list(_harm(during)), _evidence(during)
        if not all(part.good for part in again.parts):
            harm.append("does not work any more, not even when it is loaded again")
            evidence += _evidence(again) if again is not during else ()
        recovers = f"{said}works again" if said or again is not during else "works again by itself"
        self._add(Check("faults", name, not harm, "; ".join(harm) or recovers, evidence, _seconds(during, again)))

    def _judge(
        self, group: str, name: str, verdict: Verdict, trouble: Sequence[str], not_offered: Sequence[str] = ()
    ) -> None:  # fmt: skip
        said = "; ".join(trouble) or ", ".join(["good", *(f"{what}: not offered" for what in not_offered)])
        self._add(Check(group, name, not trouble, said, _evidence(verdict), _seconds(verdict)))

    def _add(self, check: Check) -> None:
        self._report.checks.append(check)
        self._told(check)

    def _try(self, context: str, line: str, after: Mapping[str, Callable[[], object]] | None = None) -> Verdict:
        """Try the driver, and do something after some of the parts."""
        self._bench.prepare()
        if self._recorder is not None:
            self._recorder.context(context)

        def ended(part: Part) -> None:
            if after and part.name in after:
                after[part.name]()

        return self._bench.try_out(self._modules, line, ended)


@contextmanager
def _echo(prefix: Sequence[str]) -> Iterator[int]:
    """A TCP server on the host that echoes; its port."""
    address = "0.0.0.0" if prefix else "127.0.0.1"  # in a namespace of this bench, or for passt
    command = [*prefix, sys.executable, "-IS", "-c", _ECHO, address]
    with spawn(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            if not port.isdigit():
                raise VmError("no TCP server can be started on this host, to which the driver could be used")
            yield int(port)
        finally:
            process.kill()


def _troubles(verdict: Verdict) -> list[str]:
    """What is wrong where all should be right; the guest's end is part of it."""
    return verdict.trouble + ([verdict.lost] if verdict.lost else [])


def _harm(verdict: Verdict) -> Iterator[str]:
    """What no fault of a device may do to a kernel."""
    if verdict.lost:
        yield f"the guest was lost: {verdict.lost}"


def _evidence(verdict: Verdict) -> tuple[str, ...]:
    lines = []
    for part in verdict.parts:
        if not part.good:
            lines += [f"{part.name}: {part.said}", *part.output.rstrip().splitlines()[-_LAST:]]
    lines += [f"{finding['rule']}: {finding.get('what', '')}" for finding in verdict.findings]
    lines += sorted(log_lines(verdict.complaints))
    left_out = len(lines) - _MOST
    return tuple(lines[:_MOST] + ([f"and {left_out} more"] if left_out > 0 else []))


def _output(verdict: Verdict) -> str:
    return next((part.output for part in verdict.parts if part.name == "command"), "")


def _seconds(*verdicts: Verdict) -> float:
    return sum(part.seconds for verdict in {id(one): one for one in verdicts}.values() for part in verdict.parts)
