"""Find a QEMU with `vfio-user-pci`, find out whether KVM works, and start processes that cannot outlive this one."""

import concurrent.futures
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nicmodel.cache import cache_dir
from nicmodel.vm.arch import AMD64, Arch
from nicmodel.vm.errors import VmError
from nicmodel.vm.host import program
from nicmodel.vm.image import Image
from nicmodel.vm.packages import obtain, write_whole
from nicmodel.vm.progress import step


def too_old(arch: Arch) -> str:
    """What to do where `system_qemu` finds none."""
    option = "" if arch.is_hosts else f" --arch {arch.name}"
    return (
        "This host has no QEMU with vfio-user-pci, which is 10.1 or later; Debian 12's and 13's are older. On Debian 13"
        " the backports have one:\n"
        f"  apt install -t trixie-backports {arch.qemu}\n"
        "or have one unpacked, with nothing installed, on any Debian:\n"
        f'  eval "$(nicmodel vm{option} --prepare)"; export QEMU'
    )


KVM_TRIAL_SECONDS = 20


@dataclass(frozen=True)
class Qemu:
    """A QEMU to run.

    Attributes:
        command: How to call it; its arguments follow.
        environment: Variables it needs besides the user's own.
        version: As `--version` prints it.
    """

    command: tuple[str, ...]
    version: str
    environment: dict[str, str] = field(default_factory=dict)

    def shell_words(self) -> list[str]:
        """The command for a shell, its environment included."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return ["env", *settings, *self.command] if settings else list(self.command)


@cache
def find_qemu(arch: Arch = AMD64) -> Qemu:
    """$NICMODEL_QEMU, else the system's qemu-system-x86_64 if it has `vfio-user-pci`, else one from Debian's packages.

    For another architecture, the environment's variable and the program are other ones.

    Raises:
        VmError: $NICMODEL_QEMU has no `vfio-user-pci`, or the packages cannot be had.
    """
    return system_qemu(arch) or unpacked_qemu(arch)


def system_qemu(arch: Arch = AMD64) -> Qemu | None:
    """$NICMODEL_QEMU, else the system's QEMU if it has `vfio-user-pci`.

    Raises:
        VmError: $NICMODEL_QEMU has no `vfio-user-pci`.
    """
    if named := os.environ.get(arch.qemu_variable):
        if qemu := _usable((named,)):
            return qemu
        raise VmError(
            f"{named} ({arch.qemu_variable}) does not run, or has no device vfio-user-pci: QEMU 10.1 or later has it"
        )
    system = shutil.which(arch.qemu_program)
    return _usable((system,)) if system else None


def unpacked_qemu(arch: Arch = AMD64, *, update: bool = False) -> Qemu:
    """QEMU from the packages of Debian's trixie-backports, whatever release the host has."""
    packages = arch.qemu_packages
    tree = obtain(packages, update=update)
    share = tree.path / "usr/share"
    command = tree.command(f"usr/bin/{arch.qemu_program}", "-L", str(share / "qemu"), "-L", str(share / "seabios"))
    modules = {"QEMU_MODULE_DIR": str(tree.path / "usr/lib/x86_64-linux-gnu/qemu")}
    if qemu := _usable(tuple(command), modules):
        return qemu
    raise VmError(f"QEMU {tree.versions[arch.qemu]} of {packages.suite} does not run on this host: {' '.join(command)}")


def _usable(command: tuple[str, ...], environment: Mapping[str, str] | None = None) -> Qemu | None:
    environment = dict(environment or {})

    def ask(*arguments: str) -> str:
        run = subprocess.run([*command, *arguments], capture_output=True, text=True, env=os.environ | environment)
        return run.stdout

    try:
        if '"vfio-user-pci"' not in ask("-device", "help"):
            return None
        return Qemu(command, ask("--version").splitlines()[0], environment)
    except OSError:
        return None


def acceleration(qemu: Qemu, image: Image) -> str:
    """The accelerator: "kvm" where it can run the guest's kernel, else "tcg"; $NICMODEL_ACCEL decides if it is set, and
    may have properties, as QEMU's option -accel: "tcg,thread=single".

    A /dev/kvm that opens is no proof: on some (nested) hosts it cannot run an unmodified kernel. So one is started,
    once per boot of the host and QEMU version. It runs only guests of the host's own architecture.
    """
    if not image.arch.is_hosts:
        wanted = os.environ.get("NICMODEL_ACCEL", "tcg")
        return wanted if kind_of(wanted) == "tcg" else "tcg"
    if named := os.environ.get("NICMODEL_ACCEL"):
        return named
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    if known := known_acceleration(qemu.version):
        return known
    with step("trying whether KVM runs the guest's kernel"):
        found = "kvm" if _kvm_boots(qemu, image) else "tcg"
    write_whole(_record(), json.dumps({"subject": [_boot(), qemu.version], "acceleration": found}))
    return found


def kind_of(acceleration: str) -> str:
    """The accelerator without its properties: "kvm" or "tcg"."""
    return acceleration.partition(",")[0]


def known_acceleration(version: str | None = None) -> str | None:
    """What the trial of KVM since the host's boot has shown, with the QEMU of this version or with the last one."""
    try:
        known = json.loads(_record().read_text("utf-8"))
        boot, tried = known["subject"]
        if boot == _boot() and version in (None, tried):
            return str(known["acceleration"])
    except (OSError, ValueError, KeyError):
        pass
    return None


def _record() -> Path:
    return cache_dir() / "acceleration.json"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()


def _kvm_boots(qemu: Qemu, image: Image) -> bool:
    """Start the kernel without an initramfs: where KVM works, it ends by itself, for want of a root file system."""
    arguments = (
        *("-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", "kvm", "-cpu", "max"),
        *("-smp", "2", "-m", "512M", "-serial", "stdio", "-no-reboot", "-kernel", str(image.kernel)),
        *("-append", "console=ttyS0 panic=-1"),
    )
    process = spawn(
        [*qemu.command, *arguments], qemu.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = threading.Timer(KVM_TRIAL_SECONDS, process.kill)
    deadline.start()
    try:
        for line in process.stdout or ():
            # The latter is said by a kernel without block devices.
            if "Unable to mount root fs" in line or "No working init found" in line:
                return True
            if "KVM internal error" in line:
                break
        return False
    finally:
        deadline.cancel()
        process.kill()
        process.wait()


# PR_SET_PDEATHSIG is about the thread that started the process, not about the whole parent: so one thread, which lives
# as long as the interpreter, starts them all.
_spawner = concurrent.futures.ThreadPoolExecutor(1, "spawner")


def spawn(
    command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start a process that the kernel kills when this one ends, however it ends.

    Args:
        command: Program and arguments.
        environment: Variables added to this process's own.
        options: Passed on to `subprocess.Popen`.
    """
    bound = [program("setpriv"), "--pdeathsig", "KILL", "--", *command]
    options = {"stdin": subprocess.DEVNULL, "env": os.environ | dict(environment or {}), **options}
    return _spawner.submit(_popen, bound, options).result()


def _popen(command: list[str], options: dict[str, Any]) -> subprocess.Popen[Any]:
    return subprocess.Popen(command, **options)
