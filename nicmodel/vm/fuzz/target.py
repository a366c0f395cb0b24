"""The driver that is fuzzed: a NIC, a guest in which the driver is up, and what both have to say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nicmodel.client.behaviour import unstamped
from nicmodel.client.control import Control, ControlError
from nicmodel.faults.scenario import Deed, Scenario
from nicmodel.vm.channel import GuestTimeoutError
from nicmodel.vm.coverage.live import LiveFile
from nicmodel.vm.coverage.recorder import Recorder
from nicmodel.vm.errors import VmError
from nicmodel.vm.fuzz.finding import Sign, emulators_fault, signs
from nicmodel.vm.fuzz.guide import Guide, Seen
from nicmodel.vm.fuzz.inputs import PING, RELOAD, UP_AND_DOWN, first_frames
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.layout import Nic
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import install_guest_tools

#: Addresses (RFC 5737, RFC 3849) and the other end's MAC address, behind which there is nobody.
MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
GUEST, PEER, GUEST6, PEER6 = "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"

#: Seconds for something in the guest to be done: a driver may wait two for each command that fails.
_LIMIT = 30.0
#: Seconds for a frame to be answered.
_ANSWER = 2.0
#: Seconds that a kernel may take to say what is wrong.
SETTLE = 0.5
#: Seconds from one input of a scenario to the next; what a guest does, and what has time to be late, gets more.
STEP, LONG_STEP = 0.05, 1.5
#: Seconds for a driver to have begun what a reset, or a command that fails, makes it do.
_SLOW = 0.5
_MOST_LOG = 1 << 20

_SET_UP = f"""
set_up() {{
    for try in $(seq 100); do
        for path in /sys/bus/pci/devices/$PCI/net/*; do [ -e "$path" ] && break 2; done
        sleep 0.05
    done
    [ -e "$path" ] || return 1
    ln -sfn "$(readlink -f "$path")" /tmp/nic
    NETIF=${{path##*/}}
    ip addr replace {GUEST}/24 dev "$NETIF"
    ip addr replace {GUEST6}/64 dev "$NETIF" nodad
    ip link set "$NETIF" up || return 1
    ip neigh replace {PEER} lladdr {PEER_MAC} dev "$NETIF"
    ip neigh replace {PEER6} lladdr {PEER_MAC} dev "$NETIF"
}}
NETIF=$(basename "$(readlink /tmp/nic)")
DRIVER=$(basename "$(readlink /sys/bus/pci/devices/$PCI/driver)")
[ "$DRIVER" ] || DRIVER=$(cat /tmp/driver)
no_xdp() {{
    pkill -x 'xdp_(program|socket)' || return 0
    for try in $(seq 100); do pgrep -x 'xdp_(program|socket)' >/dev/null || return 0; sleep 0.02; done
}}
xdp() {{
    seconds=$1 program=$2; shift 2
    no_xdp
    {{ sleep "$seconds" | "$program" --interface "$NETIF" "$@" >/tmp/xdp 2>&1; }} </dev/null >/dev/null 2>&1 &
    for try in $(seq 100); do grep -q . /tmp/xdp && return; sleep 0.02; done
}}
xdp_settings() {{
    ethtool -K "$NETIF" rx-gro-hw off
    ethtool -G "$NETIF" tcp-data-split off
    ethtool -G "$NETIF" rx-buf-len 2048
    ethtool -L "$NETIF" rx 2 tx 2 || ethtool -L "$NETIF" combined 2
    ip link set "$NETIF" mtu 1500
}}
"""
_FIRST = """
echo "$DRIVER" >/tmp/driver
sysctl -q net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=1000000 net.ipv4.icmp_msgs_burst=1000000
sysctl -q kernel.panic_on_oops=1 kernel.hung_task_timeout_secs=20 || :
dmesg -n 5
set_up
"""


@dataclass(frozen=True)
class Found:
    """Something that has gone wrong.

    Attributes:
        sign: by what it is known.
        log: what the kernel has said, or other words for it.
    """

    sign: Sign
    log: tuple[str, ...]


class Target:
    """A driver in a guest. A context manager; `start` gives it a guest, and another one each time.

    Args:
        kernel: the guest's.
        serve: options for ``nicmodel serve``.
        modules: files of the driver, in place of the stock one.
        xdp: the guest has the programs that `nicmodel.vm.fuzz.inputs.XDP` names.
        folder: for the file that QEMU and this process share.
        seen: what has run of the driver; None: nobody looks, as when a scenario is played again.

    Attributes:
        frames: that the guest may be sent.
        guest: the one that runs.
        guide: what looks at the coverage of its driver.
    """

    def __init__(
        self,
        kernel: KernelChoice,
        serve: Sequence[str],
        modules: Sequence[Path],
        xdp: bool,
        folder: Path,
        seen: Seen | None,
    ) -> None:
        self._kernel, self._modules, self._xdp, self._folder, self._seen = kernel, modules, xdp, folder, seen
        self._serve = ["--check", "--mac", MAC, *serve]
        self.frames = first_frames(MAC, GUEST, GUEST6, PEER_MAC, PEER, PEER6)
        self._running = ExitStack()
        self.guest: Guest | None = None
        self.guide: Guide | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            server = stack.enter_context(NicServer(self._serve))
            self._socket = server.sockets[0]
            self._control = stack.enter_context(Control(server.control))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._stack.close()

    def stop(self) -> None:
        """End the guest as it stands and lies."""
        if self.guest is not None:
            with suppress(VmError):
                self.guest.kill()
            self.guest = None
        self.guide = None
        self._running.close()

    def start(self) -> None:
        """Have a fresh guest in which the driver is up.

        Raises:
            VmError: it does not come up, though the device does nothing unusual.
        """
        self.stop()
        self._control.end_fault()
        self._control.findings(clear=True)
        recorder = None
        if self._seen is not None:
            names = [str(path) for path in self._modules] or [module.name for module in self._seen.modules]
            recorder = Recorder(names, live=self._folder / "coverage")
        config = GuestConfig(nics=[Nic(self._socket)], kernel=self._kernel, modules=self._modules)
        guest = self.guest = self._running.enter_context(Guest(config, recorder=recorder))
        if self._xdp:
            install_guest_tools(guest, ("xdp_program", "xdp_socket"))
        self._pci = guest.pci_addresses()["nic0"]
        self.run(_FIRST)
        self._names = guest.run(
            ["sh", "-c", "basename $(readlink /sys/bus/pci/devices/$0/driver/module)", self._pci]
        ).stdout.split()
        if not self.answers(10):
            raise VmError("the driver is up, but answers nothing: 'nicmodel bringup' tells how far it is")
        self._console = self._told = self._looked = guest.console.stat().st_size
        if self._seen is not None:
            self.guide = self._running.enter_context(Guide(LiveFile(self._folder / "coverage"), self._seen))

    @property
    def complains(self) -> bool:
        """Whether the kernel has said since the last time that something is wrong."""
        text, end = self._said(self._looked)
        whole = text.rpartition("\n")[0]
        self._looked = end - len(text) + len(whole)
        return any(True for _ in signs(whole.splitlines(), ()))

    def _said(self, since: int) -> tuple[str, int]:
        """What the console has from this place on, at most `_MOST_LOG` bytes; and where that ends."""
        assert self.guest is not None
        if self.guest.console.stat().st_size <= since:
            return "", since
        with self.guest.console.open("rb") as file:
            file.seek(since)
            data = file.read(_MOST_LOG)
        return data.decode("latin1"), since + len(data)

    def run(self, line: str, limit: float = _LIMIT) -> int:
        """Have the guest run a line of shell; its status.

        Raises:
            GuestTimeoutError: it does not end.
            VmError: the guest is gone.
        """
        assert self.guest is not None
        words = ["env", f"PCI={self._pci}", "bash", "-c", f"{_SET_UP}\n{line}"]
        return self.guest.run(words, timeout=limit, check=False).status

    def catch_up(self) -> None:
        """Wait until the guest has had a processor: on a busy machine it may have slept all the time.

        Raises:
            GuestTimeoutError: it does nothing.
            VmError: the guest is gone.
        """
        assert self.guest is not None
        self.guest.run(["true"], timeout=_LIMIT)

    def begin(self, scenario: Scenario) -> None:
        """Have the device do what a scenario says; all else that it did is over.

        Raises:
            VmError: the server has gone.
        """
        try:
            self._control.begin_scenario(scenario.table(), end=True)
        except ControlError as error:
            raise VmError(f"the NIC's server does not take the scenario: {error}") from None

    def end(self) -> None:
        """Have the device behave."""
        self._control.end_fault()

    def play(self, scenario: Scenario) -> None:
        """A whole scenario with its times: the device's part, and the guest's.

        Raises:
            GuestTimeoutError: something that the guest does takes too long.
            VmError: the guest is gone.
        """
        started = time.monotonic()
        self.begin(scenario)
        for deed in sorted(scenario.guest, key=lambda deed: deed.start):
            time.sleep(max(0.0, started + deed.start - time.monotonic()))
            self.run(deed.run)
        last = max((frame.start for frame in scenario.frames), default=0.0)
        time.sleep(max(0.0, started + last + SETTLE - time.monotonic()))

    def answers(self, limit: float = _ANSWER) -> bool:
        """Whether the guest answers a ping through the NIC, within some seconds.

        Raises:
            VmError: the server has gone.
        """
        end = time.monotonic() + limit * self.patience
        sent = self._sent()
        while time.monotonic() < end:
            self._control.inject([self.frames[PING]])
            for _ in range(20):
                if self._sent() > sent:
                    return True
                time.sleep(0.01)
        return False

    @property
    def patience(self) -> int:
        """See `nicmodel.vm.kernel.Kernel.patience`."""
        return 1 if self.guest is None else self.guest.kernel.patience

    def counters(self) -> list[dict[str, Any]]:
        """What the server has counted: its one NIC (`nicmodel.client.control.Control.stat`)."""
        return self._control.stat()

    def _sent(self) -> int:
        (nic,) = self.counters()
        return sum(queue["packets"] for queue in nic["tx_queues"])

    def contract(self) -> list[Found]:
        """How the driver has broken the contract since this was asked."""
        found = []
        for finding in self._control.findings(clear=True):
            rule = str(finding["rule"])
            found.append(Found(Sign("contract", rule), (f"{rule}: {finding.get('what', '')}",)))
        return found

    def found(self, *, again: bool = False) -> list[Found]:
        """What the kernel has complained about since this was asked, and whether it still lives.

        Args:
            again: tell what was told the last time, too: the rest of it may have come.
        """
        assert self.guest is not None
        lost: tuple[Sign, str] | None = None
        try:
            self.catch_up()
        except GuestTimeoutError:
            lost = HANG, "the guest answers no more"
        except VmError as error:
            lost = Sign("lost", ""), str(error).partition("\n")[0]
        self._console = self._console if again else self._told
        text, self._told = self._said(self._console)
        lines = [unstamped(line.rstrip("\r")) for line in text.splitlines()]
        if emulators_fault(text):
            return [Found(EMULATOR, tuple(lines[-40:]))]
        found = [Found(sign, tuple(part)) for sign, part in signs(lines, self._names)]
        # What a kernel says after it has crashed says nothing.
        crash = next((number for number, one in enumerate(found) if not one.sign.mild), len(found))
        found = found[: crash + 1]
        if lost and not found:
            sign, said = lost
            found.append(Found(sign, (said, *lines[-40:])))
        return found

    def revive(self) -> list[Found]:
        """See that the driver answers, if need be after it was helped; what is wrong if nothing helps."""
        self.end()
        try:
            if self.answers():
                return []
            for line in ("no_xdp", UP_AND_DOWN, RELOAD):
                self.run(line)
                if self.answers():
                    return []
        except GuestTimeoutError as error:
            return self.found() or [Found(HANG, tuple(str(error).splitlines()))]
        except VmError:
            return self.found()
        return self.found() or [Found(STUCK, ("not even when it is bound again the driver answers",))]

    def what_is_wrong(self) -> list[Found]:
        """All that can be said of a guest in which something was played."""
        time.sleep(SETTLE)
        found = self.found()
        if any(not one.sign.mild for one in found):
            return found
        return found + self.revive() + self.contract()


EMULATOR = Sign("a fault of QEMU's emulated processors", "")
"""None of the driver's."""
HANG, STUCK = Sign("hang", ""), Sign("stuck", "")
"""Something in the guest does not end; the driver answers no more, not even when it is bound again."""


def pause(one: Scenario) -> float:
    """Seconds, at most, that the driver needs to have done what an input makes it do."""
    fast = not one.guest and all(fault.where in ("receive", "transmit", "interrupts") for _, fault in one.faults)
    return STEP if fast else _SLOW


def in_a_row(inputs: Sequence[Scenario]) -> Scenario:
    """Inputs, one after the other, as one scenario: each has its time, at whose end its faults are over.

    Those of the last one end as they do by themselves.
    """
    faults, frames, guest = [], [], []
    start = 0.0
    for number, one in enumerate(inputs, 1):
        lasts = length(one)
        for nic, fault in one.faults:
            left = fault.duration
            if number < len(inputs):
                left = round(lasts if left is None else min(left, lasts), 4)
            faults.append((nic, replace(fault, start=round(start, 3), duration=left)))
        # Faults begin with the server's next turn.
        frames += [replace(frame, start=round(start + (STEP / 4 if start else 0.0), 3)) for frame in one.frames]
        guest += [Deed(deed.run, round(start + place * STEP, 3)) for place, deed in enumerate(one.guest)]
        start += lasts
    return Scenario(inputs[-1].seed if inputs else 0, tuple(faults), frames=tuple(frames), guest=tuple(guest))


def length(one: Scenario) -> float:
    """Seconds that an input is given where several are one scenario."""
    if one.guest:
        return LONG_STEP * len(one.guest)
    lasting: Mapping[str, float] = {fault.name: fault.duration or 0.0 for _, fault in one.faults}
    return max(STEP, *(min(seconds, 1.0) for seconds in lasting.values()), 0.0)
