"""A running guest: start it, run commands in it, stop it.

Guests start from a snapshot, which is made by booting one without NICs (`nicmodel.vm.snapshot`): QEMU reads it, the
NICs are plugged into PCIe ports, and the guest's kernel finds them and loads their driver. After that nothing is
different from a guest that has booted.
"""

import contextlib
import json
import os
import re
import selectors
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from nicmodel.client.topology import devices
from nicmodel.vm import agent, modules, needs, share, snapshot
from nicmodel.vm.arch import Arch, arch_named
from nicmodel.vm.channel import Channel, GuestTimeoutError, Process, Result, Sink
from nicmodel.vm.device_memory import DeviceMemory
from nicmodel.vm.errors import VmError
from nicmodel.vm.image import Image, build_image
from nicmodel.vm.kernel import Kernel, KernelChoice, default_kernel, for_arch
from nicmodel.vm.layout import LAYOUTS, Accelerator, Nic, arguments, without_nics
from nicmodel.vm.progress import step
from nicmodel.vm.qemu import acceleration, find_qemu, kind_of, known_acceleration, spawn
from nicmodel.vm.qmp import Qmp
from nicmodel.vm.share import Share, ShareServer

if TYPE_CHECKING:
    from nicmodel.vm.coverage.recorder import Recorder

GIB = 1 << 30

_PREPARE_TIMEOUT = 600
#: Bytes of the console in which a crash is looked for: what a kernel says from its first word to "end Kernel panic".
_CRASH = 16 << 10
_CHANNELS = ("agent", "console", "qmp")


@dataclass(frozen=True)
class GuestConfig:
    """What a guest is made of.

    Attributes:
        nics: NICs; their servers must be listening when the guest starts.
        vcpus: Virtual CPUs.
        memory: Bytes, or a number with a unit, as QEMU writes it: "2G".
        device_memory: Memory of devices as NUMA nodes, in bytes by name (at least 2 MiB each): see `DeviceMemory`.
        accelerators: PCI devices with memory in a BAR, in bytes by name, powers of two: see `DeviceMemory`. The module
            `guest/module` exports it as dma-bufs (`nicmodel.vm.tools.install_guest_module`).
        arch: "amd64" or "arm64"; "": that of the kernel.
        layout: "q35", "two-nics", "switch", "iommu", or "virt" for arm64: see `qemu-configs/`. "": "q35", or "virt".
        kernel: The kernel, Debian's or one of your own: `nicmodel.vm.kernel.kernel_named("/src/linux")`. One of a suite
            is taken for the guest's architecture. If none is given, the environment's NICMODEL_KERNEL names it.
        cpu: QEMU's CPU model, such as "EPYC".
        cmdline: Added to the kernel's command line.
        disks: Files that the guest sees as /dev/vda, /dev/vdb, …, which it cannot write.
        prepare: Shell commands that each guest has run before anything else; a snapshot has their effect in it. They
            must not ask for NICs.
        shares: Folders of the host's that the guest has mounted.
        files: Files of the host's that are copied into the guest when it starts, by their absolute paths there.
        modules: Files of kernel modules, which are loaded instead of the stock ones of the same names.
        arguments: Added to QEMU's arguments, such as `-netdev` and `-device` for other NICs.
    """

    nics: Sequence[Nic] = ()
    vcpus: int = 2
    memory: int | str = GIB
    device_memory: Mapping[str, int] = field(default_factory=dict)
    accelerators: Mapping[str, int] = field(default_factory=dict)
    arch: str = ""
    layout: str = ""
    kernel: KernelChoice = field(default_factory=default_kernel)
    cpu: str = "max"
    cmdline: str = ""
    disks: Sequence[Path] = ()
    prepare: str = ""
    shares: Sequence[Share] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    modules: Sequence[Path] = ()
    arguments: Sequence[str] = ()


def parse_size(text: str) -> int:
    """Bytes in a size such as "2G", "512M", "64k" or "4096" (units are powers of 1024)."""
    if not (match := re.fullmatch(r"(\d+)([KMGT]?)(i?B)?", text.strip(), re.IGNORECASE)):
        raise VmError(f"'{text}' is not a size: write 2G, 512M or a number of bytes")
    return int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))


def parse_named_size(text: str, option: str) -> tuple[str, int]:
    """Name and bytes in a text such as "hbm=256M"; `option` is who it was given to."""
    name, equals, size = text.partition("=")
    if not name.isidentifier() or not equals:
        raise VmError(f"{option} '{text}': write NAME=SIZE, such as hbm=256M")
    return name, parse_size(size)


class CommandError(VmError):
    """A command in the guest ended with a status other than 0.

    Attributes:
        result: What it said.
    """

    def __init__(self, command: str, result: Result) -> None:
        said = (result.stderr or result.stdout).strip() or "it said nothing"
        super().__init__(f"'{command}' in the guest ended with status {result.status}: {said}")
        self.result = result


class Guest:
    """A guest. Use it as a context manager: it takes commands inside the block, and is gone after it.

    Args:
        config: What it is made of.
        console: File for the serial console's output; one in a temporary folder if None.
        boot_timeout: Seconds from the start of QEMU until the guest takes commands.
        snapshot: Whether to start from a snapshot if that is possible; otherwise the guest boots.
        recorder: Records which code of drivers runs; `Guest.every_recorder` if None. The guest's CPU is then emulated.

    Attributes:
        every_recorder: Records all guests of this process that are started from now on and are given no other.
        accel: "kvm" or "tcg".
        why_booted: Why it has booted; empty if it has started from a snapshot.
        kernel: What was found of its kernel, and where.
        kernel_version: As `uname -r` prints it.
        console: The serial console's output so far is in this file.
        qmp: QEMU's monitor: `guest.qmp.execute("query-pci")`.
        device_memory: Both kinds, by the names of the configuration.
    """

    every_recorder: "ClassVar[Recorder | None]" = None
    accel: str
    why_booted: str
    kernel: Kernel
    kernel_version: str
    console: Path
    qmp: Qmp
    device_memory: dict[str, DeviceMemory]

    def __init__(
        self,
        config: GuestConfig | None = None,
        *,
        console: Path | None = None,
        boot_timeout: float = 300,
        snapshot: bool = True,
        recorder: "Recorder | None" = None,
    ):
        self.config = config or GuestConfig()
        self._recorder = recorder or self.every_recorder
        self._console_wanted = console
        self._boot_timeout = boot_timeout
        self._snapshot_wanted = snapshot
        self._plugged = True
        self._accel_wanted = ""

    @property
    def pid(self) -> int:
        """QEMU's process number."""
        return self._process.pid

    def __enter__(self) -> Self:
        self._cleanup = contextlib.ExitStack()
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.stop()
        finally:
            self._cleanup.close()

    def run(
        self, command: str | Sequence[str], *, timeout: float = 60, check: bool = True, input: bytes | None = None
    ) -> Result:
        """Run a command in the guest and wait for its end. Several threads may do so at once.

        Args:
            command: A line for the guest's shell (bash), or a program and its arguments.
            timeout: Seconds; then the command is killed. A slow kernel is given more (`Kernel.patience`).
            check: Whether a status other than 0 is an error.
            input: Its standard input; empty if None.

        Raises:
            CommandError: It failed, and `check` is set.
            GuestTimeoutError: It took too long.
            VmError: The guest crashed or ended; the message quotes its console.
        """
        process = self.start(command)
        if input:
            process.write(input)
        process.close_input()
        result = self._finish(process, timeout)
        if check and result.status:
            raise CommandError(process.command, result)
        return result

    def start(
        self, command: str | Sequence[str], terminal: tuple[int, int] | None = None, sink: Sink | None = None
    ) -> Process:
        """Start a command in the guest in the background.

        Args:
            command: A line for the guest's shell (bash), or a program and its arguments.
            terminal: Run it on a terminal with these rows and columns.
            sink: Gets the output as it comes; otherwise it is kept.
        """
        return self._channel.start(command, terminal, sink)

    def put(self, data: bytes | Path, path: str, mode: int = 0o755) -> None:
        """Write a file in the guest: the given bytes, or the content of a file of the host's."""
        content = data.read_bytes() if isinstance(data, Path) else data
        quoted = shlex.quote(path)
        self.run(f"cat > {quoted}.new && chmod {mode:o} {quoted}.new && mv {quoted}.new {quoted}", input=content)

    def get(self, path: str) -> bytes:
        """The content of a file in the guest."""
        process = self.start(["cat", path])
        result = self._finish(process, 60)
        if result.status:
            raise CommandError(process.command, result)
        return process.output_bytes()

    def pci_addresses(self) -> dict[str, str]:
        """Where its devices are now, such as "0000:03:00.0", by QEMU's names for them: the first NIC is ``nic0``."""
        return pci_addresses(self.qmp.execute("query-pci"))

    def dmesg(self) -> str:
        """The kernel's log."""
        return self.run("dmesg").stdout

    def reboot(self) -> None:
        """Reboot, in order: drivers shut their devices down. Returns when the guest takes commands again."""
        greetings = self._channel.greetings
        self.start("reboot -f")
        self._await_boot(greetings + 1)
        self._settle_in()

    def reset(self) -> None:
        """Press the reset button: no driver learns of it. Returns when the guest takes commands again."""
        greetings = self._channel.greetings
        self.qmp.execute("system_reset")
        self._await_boot(greetings + 1)
        self._settle_in()

    def qemu_log(self) -> str:
        """What QEMU has printed so far."""
        return self._qemu_log.read_text(errors="replace")

    def stop(self, timeout: float = 15) -> None:
        """Power off, in order; after `timeout` seconds, or if the guest hangs, end QEMU. Does nothing if it is gone."""
        if self._process.poll() is None and not self._channel.failure:
            self.start("poweroff -f")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout * self.kernel.patience)
        if self._process.poll() is None:
            with contextlib.suppress(VmError, OSError, TimeoutError):
                self.qmp.execute("quit")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self.kill()

    def kill(self) -> None:
        """End QEMU at once (SIGKILL), as a crash would."""
        self._process.kill()
        self._process.wait()

    def console_tail(self, lines: int = 80) -> str:
        """The console's last lines: enough for a crash with its whole call trace."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _start(self) -> None:
        check_memories(self.config)
        check_files(self.config)
        self.kernel = find_kernel(self.config)
        self._look_at_kernel()
        self._image = build_image(self.kernel)
        self._qemu = find_qemu(self.kernel.arch)
        self._acceleration = self._choose_acceleration()
        self.accel = kind_of(self._acceleration)
        self.kernel_version = self._image.version
        self._modules = [modules.read(file, self.kernel_version) for file in self.config.modules]
        self._folder = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="nicmodel-")))
        self.console = self._console_wanted or self._folder / "console.log"
        self.why_booted = "" if self._snapshot_wanted else "as asked"
        self.why_booted = self.why_booted or self._why_no_snapshot()
        self._running = self._cleanup.enter_context(contextlib.ExitStack())
        if not self.why_booted and self._start_from_snapshot():
            self._furnish()
        else:
            self._launch()
            self._await_boot(1)
            if self.config.prepare:
                self.run(self.config.prepare, timeout=_PREPARE_TIMEOUT)
            self._settle_in()
        self._look_at_drivers()

    def _look_at_kernel(self) -> None:
        """Say what it lacks.

        Raises:
            VmError: It cannot do what is asked for.
        """
        needs.require(self.kernel, needs.SHARE if self.config.shares else ())
        needs.require(self.kernel, needs.NODE if self.config.device_memory else ())

    def _look_at_drivers(self) -> None:
        """Say for which NICs the kernel has no driver. QEMU knows what they are when they are plugged in."""
        if not self._plugged or not self.config.nics or self.config.modules:
            return
        if needs.driverless(self.kernel, needs.DRIVERS):
            found = [(one["id"]["vendor"], one["id"]["device"]) for one, _ in devices(self.qmp.execute("query-pci"))]
            if said := needs.driverless(self.kernel, found):
                print(f"nicmodel: the guest's kernel is without {', '.join(said)}", file=sys.stderr)

    def _settle_in(self) -> None:
        """Give a guest that has just booted what its kernel and image do not have."""
        modules.replace(self, self._modules)
        self._furnish()

    def _furnish(self) -> None:
        """What a guest is given once it has booted: folders and files of the host's."""
        if not self._plugged:
            return
        for number, shared in enumerate(self.config.shares):
            try:
                self.run(["sh", "-c", share.mount(shared, number), "sh", shared.place])
            except CommandError as error:
                raise VmError(f"{error}\n{self._servers[number].said()}".strip()) from None
        for place, file in self.config.files.items():
            self.run(["mkdir", "-p", os.path.dirname(place)])
            self.put(file, place, file.stat().st_mode & 0o777)

    def _choose_acceleration(self) -> str:
        """See `acceleration`. QEMU sees which code runs only if it translates it.

        Raises:
            VmError: The user has chosen KVM, and that code is to be recorded.
        """
        if self._accel_wanted or not self._recorder:
            return self._accel_wanted or acceleration(self._qemu, self._image)
        named = os.environ.get("NICMODEL_ACCEL") or "tcg"
        if kind_of(named) != "tcg":
            raise VmError(f"coverage is measured on an emulated CPU only: NICMODEL_ACCEL={named} must be unset, or tcg")
        if known_acceleration(self._qemu.version) == "kvm":
            print("nicmodel: for its coverage this guest runs on an emulated CPU, without KVM", file=sys.stderr)
        return named

    def _start_from_snapshot(self) -> bool:
        """Whether it was possible; `why_booted` says why not.

        Raises:
            VmError: Such a guest does not even boot, or a NIC cannot be plugged in.
        """
        try:
            kept = snapshot.obtain(self._snapshot_name(), self._save_snapshot)
        except (snapshot.SaveError, OSError) as error:
            self.why_booted = f"no snapshot of it can be made: {error}"
        else:
            try:
                self._restore(kept)
                return True
            except snapshot.RestoreError as error:
                kept.drop()
                self.why_booted = f"its snapshot is of no use, and deleted: {error}"
                self._running.close()
            finally:
                os.close(kept.state)
        print(f"nicmodel: the guest boots: {self.why_booted}", file=sys.stderr)
        return False

    def _why_no_snapshot(self) -> str:
        """Why the guest cannot start from a snapshot; empty if it can."""
        if self.config.layout == "iommu":
            return "layout iommu has no ports for NICs"
        if self.config.arguments:
            return "it has arguments of QEMU's that a snapshot might not do justice to"
        _, nics = without_nics(self._words(dict.fromkeys(self._memories, "")))
        if not all(str(nic.get("bus", "")).startswith("port") for nic in nics):
            return "a NIC of it is not behind a port, and cannot be plugged in"
        return ""

    def _snapshot_name(self) -> str:
        words, _ = without_nics(self._command(dict.fromkeys(self._memories, ""), dict.fromkeys(_CHANNELS, 0)))
        programs = [word for word in self._qemu.command if os.path.isfile(word)]
        files: list[str | Path] = [self._image.kernel, self._image.initrd, *self.config.disks, *programs]
        more = {"qemu": self._qemu.version, **self._qemu.environment, "prepare": self.config.prepare}
        return snapshot.identity(words, files, more)

    def _save_snapshot(self, folder: Path) -> None:
        """Boot such a guest without NICs, and save it."""
        maker = Guest(replace(self.config, modules=()), console=folder / "console", snapshot=False)
        maker._plugged = False
        maker._recorder = None  # it has no driver to record; but its CPU is like this guest's
        maker._accel_wanted = self._acceleration
        with step("booting the guest once, for a snapshot; the next ones start from it"), maker:
            try:
                snapshot.save(maker.qmp, folder / "state")
            finally:
                maker.kill()

    def _restore(self, kept: snapshot.Snapshot) -> None:
        """Start from a snapshot.

        Raises:
            RestoreError: It is of no use.
            VmError: A NIC cannot be plugged in.
        """
        self._launch(kept)
        snapshot.restore(self.qmp, kept.path)
        if self._modules:  # before the NICs, whose drivers they may be
            self._wake()
            modules.put(self, self._modules)
        _, nics = without_nics(self._words(dict.fromkeys(self._memories, "")))
        for nic in nics:
            self.qmp.execute("device_add", nic)
        for server in self._servers:
            try:
                self.qmp.execute("device_add", server.device())
            except VmError as error:
                raise VmError(f"{error} {server.said()}") from None
        self._wake()
        modules.load(self, self._modules)

    def _wake(self) -> None:
        """Have the guest of a snapshot run, and its agent look for what has been plugged in.

        Raises:
            RestoreError: It does not come to life.
        """
        self.qmp.execute("cont")
        greetings = self._channel.greetings
        self._channel.reset("the agent was woken")
        self._channel.wake()
        try:
            self._await_boot(greetings + 1)
        except VmError as error:
            raise snapshot.RestoreError(str(error)) from error

    @property
    def _memories(self) -> dict[str, int]:
        return {**self.config.device_memory, **self.config.accelerators}

    def _words(self, files: Mapping[str, str]) -> list[str]:
        return qemu_arguments(self.config, self._image, self._acceleration, files)

    def _command(self, files: Mapping[str, str], descriptors: Mapping[str, int]) -> list[str]:
        """QEMU's command.

        Args:
            files: Paths of the devices' memories, by name.
            descriptors: Of the sockets, by their names in `_CHANNELS`.
        """
        backends = {name: f"memory-backend-file,mem-path={files[name]}" for name in self.config.device_memory}
        words = [*self._qemu.command, *self._words(files), *_channels(descriptors)]
        return words + _numa_nodes(self.config, backends)

    def _launch(self, kept: snapshot.Snapshot | None = None) -> None:
        """Start QEMU: it boots, or waits to be told to read a snapshot."""
        self.device_memory = {}
        for name, size in self._memories.items():
            self.device_memory[name] = DeviceMemory.create(name, size)
            self._running.callback(self.device_memory[name].close)
        for node, name in enumerate(self.config.device_memory, 1):
            self.device_memory[name].node = node
        sockets = {name: socket.socketpair() for name in _CHANNELS}
        passed = {name: pair[1].fileno() for name, pair in sockets.items()}
        files = {name: f"/proc/self/fd/{memory.fd}" for name, memory in self.device_memory.items()}
        command = self._command(files, passed)
        descriptors = [*passed.values(), *(memory.fd for memory in self.device_memory.values())]
        if kept or not self._plugged:
            command, _ = without_nics(command)
        self._servers = self._serve_shares()
        for server in self._servers:
            command += server.words() + ([] if kept else ["-device", json.dumps(server.device())])
            descriptors.append(server.connection.fileno())
        if kept:
            command += ["-incoming", "defer"]
            descriptors.append(kept.state)
        self.console.write_bytes(kept.console if kept else b"")
        if self._recorder:
            recording = self._recorder.recording(self.kernel, self._qemu, self.config.vcpus, self._folder)
            command += self._running.enter_context(recording)
        self._qemu_log = self._folder / "qemu.log"
        with self._qemu_log.open("wb") as log:
            self._process = spawn(command, self._qemu.environment, stdout=log, stderr=log, pass_fds=descriptors)
        for server in self._servers:
            server.connection.close()
        self._running.callback(self.kill)
        for _, theirs in sockets.values():
            theirs.close()
        self._channel = Channel(sockets["agent"][0], self.kernel.patience)
        # Before anybody waits for the process, after which its number may be another's.
        ended = FileIO(os.pidfd_open(self._process.pid))
        heard = (sockets["agent"][0], sockets["console"][0])
        watcher = threading.Thread(target=self._watch, args=(*heard, ended), name="guest", daemon=True)
        watcher.start()
        self._running.callback(watcher.join)
        self._running.callback(self.kill)  # before the watcher is waited for: it ends with QEMU
        try:
            self.qmp = Qmp(sockets["qmp"][0], self._on_event)
        except Exception as error:
            self.kill()
            said = [self.qemu_log().strip() or str(error), *(server.said() for server in self._servers)]
            raise VmError(f"QEMU did not start: {' '.join(filter(None, said))}") from error
        self._running.callback(self.qmp.close)

    def _serve_shares(self) -> list[ShareServer]:
        servers = []
        for number, shared in enumerate(self.config.shares if self._plugged else ()):
            servers.append(ShareServer(shared, number, self._folder))
            self._running.callback(servers[-1].close)
        return servers

    def _await_boot(self, greetings: int) -> None:
        """Wait until the agent has started `greetings` times."""
        if not self._channel.wait_greeting(greetings, self._boot_timeout):
            limit = self._boot_timeout * self.kernel.patience
            reason = self._channel.failure or f"the guest has not booted within {limit:g} s"
            if self.kernel.config is None:
                reason += f"; {needs.unknown(self.kernel)}"
            raise VmError(self._with_console(reason))
        addresses = self.pci_addresses()
        for name in self.config.accelerators:
            self.device_memory[name].device = f"/dev/bar_dmabuf/{addresses[name]}"

    def _finish(self, process: Process, timeout: float) -> Result:
        try:
            return process.wait(timeout)
        except GuestTimeoutError as error:
            process.kill()
            raise GuestTimeoutError(self._with_console(str(error))) from None
        except VmError as error:
            if self._channel.failure:
                raise VmError(self._with_console(str(error))) from None
            raise

    def _with_console(self, reason: str) -> str:
        return f"{reason}\nThe guest's console ended with:\n{self.console_tail()}"

    def _on_event(self, name: str) -> None:
        if name == "RESET":
            self._channel.reset("the guest was reset")

    def _watch(self, agent_socket: socket.socket, console_socket: socket.socket, ended: FileIO) -> None:
        """Thread: take what the agent and the console say until QEMU ends.

        Not only until the sockets end: whatever else holds a socket's other end must not hold up who waits for this.
        """
        recent = b""
        with (
            agent_socket,
            console_socket,
            ended,
            self.console.open("ab", buffering=0) as console,
            selectors.DefaultSelector() as selector,
        ):
            selector.register(agent_socket, selectors.EVENT_READ)
            selector.register(console_socket, selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            while True:
                ready = [key for key, _ in selector.select()]
                if [key.fileobj for key in ready] == [ended]:
                    break
                for key in ready:
                    if key.fileobj is ended:
                        continue  # what was said before comes first
                    try:
                        data = os.read(key.fd, 1 << 18)
                    except ConnectionResetError:
                        data = b""
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is agent_socket:
                        self._channel.receive(data)
                    else:
                        console.write(data)
                        recent = (recent + data)[-_CRASH:]
                        if panic := re.search(rb"---\[ end (Kernel panic[^\r\n]*) \]---", recent):
                            reason = f"the guest crashed: {panic[1].decode(errors='replace')}"
                            self._channel.fail(reason + explain_crash(recent))
        status = self._process.wait()
        said = self.qemu_log().strip()
        self._channel.fail(f"QEMU has ended (status {status})" + (f": {said}" if said else ""))


def explain_crash(console: bytes) -> str:
    """What is known about a crash that is neither the driver's fault nor the NIC's; empty if nothing is.

    A breakpoint (int3) was executed where memory has none, as the byte before the instruction pointer shows: an
    emulated processor of QEMU's still ran what another one had overwritten. A driver that jumps astray into the padding
    between functions is another matter: there the byte is a breakpoint (0xcc).
    """
    stale = re.search(rb"(?s)Oops: int3.*?\bCode:[ 0-9a-f]* ([0-9a-f]{2}) <", console)
    if not stale or stale[1] == b"cc":
        return ""
    return (
        " (a fault of QEMU's emulated processors, which now and then run code that another one has just overwritten; "
        "neither the driver nor the NIC is to blame. Try again; one virtual CPU, or NICMODEL_ACCEL=tcg,thread=single, "
        "avoids it)"
    )


def print_command(config: GuestConfig) -> str:
    """A command line for the shell that starts such a guest by hand, its console on the terminal."""
    if config.shares or config.files:
        raise VmError("--share and --put need more than QEMU's command line: leave them out to have it printed")
    image = build_image(find_kernel(config))
    qemu = find_qemu(image.arch)
    check_memories(config)
    files = {name: f"/dev/shm/{name}" for name in config.accelerators}
    words = [*qemu.shell_words(), *qemu_arguments(config, image, acceleration(qemu, image), files), "-serial", "stdio"]
    words += _numa_nodes(config, dict.fromkeys(config.device_memory, "memory-backend-memfd"))
    return shell_command(words)


def shell_command(words: Sequence[str]) -> str:
    """Words as a command for the shell, each option on a line of its own."""
    return " ".join(f"\\\n  {shlex.quote(word)}" if word.startswith("-") else shlex.quote(word) for word in words)


def find_kernel(config: GuestConfig) -> Kernel:
    """The kernel of a guest, of its architecture.

    Raises:
        VmError: There is none, or it is for another architecture.
    """
    return for_arch(config.kernel, arch_named(config.arch) if config.arch else None).find()


def check_memories(config: GuestConfig) -> None:
    """What QEMU would say of devices' memories only by crashing, or not at all.

    Raises:
        VmError: Two have the same name, or an accelerator's size is no power of two, as a BAR's must be.
    """
    if twice := set(config.device_memory) & set(config.accelerators):
        raise VmError(f"two memories are called '{twice.pop()}': give each a name of its own")
    for name, size in config.accelerators.items():
        if size < 4096 or size & (size - 1):
            raise VmError(f"accelerator '{name}' of {size} bytes: a BAR's size is a power of two, such as 128M")


def check_files(config: GuestConfig) -> None:
    """What is to be shared with a guest or copied into it.

    Raises:
        VmError: It is not there, or has no place in the guest.
    """
    for shared in config.shares:
        shared.check()
    share.check_puts(config.files)


def pci_addresses(buses: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The guest's PCI addresses, such as "0000:03:00.0", by QEMU's names for the devices, from `query-pci`."""
    found = {}
    for bus in buses:
        for device in bus["devices"]:
            found[device["qdev_id"]] = f"0000:{device['bus']:02x}:{device['slot']:02x}.{device['function']}"
            if "devices" in device.get("pci_bridge", {}):
                found |= pci_addresses([device["pci_bridge"]])
    return found


def qemu_arguments(config: GuestConfig, image: Image, accel: str, files: Mapping[str, str]) -> list[str]:
    """QEMU's arguments for a guest, except for its console, the agent's port and NUMA nodes of devices' memory.

    Args:
        config: The guest.
        image: What it boots.
        accel: "kvm" or "tcg", with properties if there are any: see `acceleration`.
        files: Paths of the accelerators' memories, by name.
    """
    variables = {
        "KERNEL": str(image.kernel),
        "INITRD": str(image.initrd),
        # Interrupt remapping needs the split interrupt controller with KVM; it costs nothing without.
        "ACCEL": f"{accel},kernel-irqchip=split" if kind_of(accel) == "kvm" else accel,
        "VCPUS": str(config.vcpus),
        "MEMORY": f"{_memory(config)}B",
        "CPU": config.cpu + (image.arch.slow_if_emulated if kind_of(accel) == "tcg" else ""),
        "CMDLINE": config.cmdline,
    }
    accelerators = [Accelerator(name, size, files[name]) for name, size in config.accelerators.items()]
    words = arguments(layout_of(config, image.arch), config.nics, variables, accelerators)
    if config.device_memory:
        # Once there are NUMA nodes, each names its memory, and the machine no longer does.
        words = [word.removesuffix(",memory-backend=ram") for word in words]
    for disk in config.disks:
        words += ["-drive", f"file={str(disk).replace(',', ',,')},format=raw,if=virtio,readonly=on"]
    return [*words, *share.ports(len(config.shares)), *config.arguments]


def layout_of(config: GuestConfig, arch: Arch) -> str:
    """The layout of a guest.

    Raises:
        VmError: It is a machine of another architecture.
    """
    if config.layout in LAYOUTS and config.layout not in arch.layouts:
        raise VmError(f"layout '{config.layout}' is none of an {arch.name} guest's: say {' or '.join(arch.layouts)}")
    return config.layout or arch.layouts[0]


def _memory(config: GuestConfig) -> int:
    return parse_size(config.memory) if isinstance(config.memory, str) else config.memory


def _channels(descriptors: Mapping[str, int]) -> list[str]:
    """QEMU's arguments for monitor, console and the agent's port, each on a socket that QEMU inherits."""
    words = []
    for name, descriptor in descriptors.items():
        words += ["-chardev", f"socket,id={name},fd={descriptor}"]
    words += ["-qmp", "chardev:qmp", "-serial", "chardev:console"]
    return [*words, "-device", "virtio-serial-pci", "-device", f"virtserialport,chardev=agent,name={agent.PORT_NAME}"]


def _numa_nodes(config: GuestConfig, backends: Mapping[str, str]) -> list[str]:
    """QEMU's arguments for NUMA nodes: the guest's memory with all CPUs, then each device's memory without.

    Args:
        config: The guest.
        backends: QEMU's memory backend for each of the devices' memories, by name.
    """
    if not backends:
        return []
    words = ["-numa", f"node,nodeid=0,cpus=0-{config.vcpus - 1},memdev=ram"]
    total = _memory(config)
    for node, (name, backend) in enumerate(backends.items(), 1):
        size = config.device_memory[name]
        total += size
        words += ["-object", f"{backend},id={name},size={size},share=on"]
        words += ["-numa", f"node,nodeid={node},memdev={name}"]
    return ["-m", f"{total}B", *words]
