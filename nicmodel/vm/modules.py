"""Kernel modules that a guest has instead of the stock ones of the same names."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nicmodel.vm.errors import VmError
from nicmodel.vm.image import kmod

if TYPE_CHECKING:
    from nicmodel.vm.guest import Guest

#: Seconds for a driver to be loaded or removed.
LOAD_TIMEOUT = 30


@dataclass(frozen=True)
class Module:
    """A file with a kernel module.

    Attributes:
        file: The file.
        name: What the kernel calls it, whatever the file is called.
        vermagic: The kernel that it was compiled for: its release, and what else has to be the same.
    """

    file: Path
    name: str
    vermagic: str

    @property
    def release(self) -> str:
        """Of the kernel that it was compiled for, as `uname -r` prints it."""
        return self.vermagic.partition(" ")[0]

    @property
    def place(self) -> str:
        """Its file in a guest, where modprobe prefers it to the stock one (depmod.d(5), `search`)."""
        packed = "".join(suffix for suffix in self.file.suffixes[-1:] if suffix != ".ko")
        return f"/lib/modules/{self.release}/updates/{self.name}.ko{packed}"


def read(file: Path, version: str) -> Module:
    """What modinfo(8) tells of a module's file.

    Args:
        file: The file, which may be compressed.
        version: Release of the kernel that is to load it.

    Raises:
        VmError: It is no module, or one of another kernel.
    """
    if not file.is_file():
        raise VmError(f"{file}: there is no such file")
    command = kmod("modinfo", str(file.resolve()))
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    fields = dict(re.findall(r"^(\w+): +(.*)$", done.stdout, re.MULTILINE))
    if done.returncode or "vermagic" not in fields or "name" not in fields:
        raise VmError(f"{file} is no kernel module; one is called NAME.ko, and 'nicmodel driver build' makes it")
    module = Module(file, fields["name"], fields["vermagic"])
    if module.release != version:
        raise VmError(
            f"{file} was compiled for Linux {module.release}, and the guest's is {version}: compile it for that"
            " (nicmodel driver build), or choose the other kernel (--kernel)"
        )
    return module


def put(guest: Guest, modules: Sequence[Module]) -> None:
    """Put modules where the guest's modprobe finds them before the stock ones."""
    for module in modules:
        guest.run(["mkdir", "-p", str(Path(module.place).parent)])
        guest.put(module.file, module.place, 0o644)
    if modules:
        guest.run("depmod")


def load(guest: Guest, modules: Sequence[Module]) -> None:
    """Load modules that were `put`, unless the guest's command line forbids it (`modprobe.blacklist=`).

    Raises:
        VmError: One cannot be loaded; the text says why, in the kernel's words.
    """
    for module in modules:
        before = len(guest.dmesg())
        result = guest.run(["modprobe", "-b", module.name], timeout=LOAD_TIMEOUT, check=False)
        if result.status:
            said = (result.stderr.strip() + "\n" + guest.dmesg()[before:].strip()).strip()
            raise VmError(f"{module.file} was not loaded in the guest: {said}")


def replace(guest: Guest, modules: Sequence[Module]) -> None:
    """In a guest that has booted, put modules in, and load them instead of the stock ones that are loaded.

    Raises:
        VmError: One cannot be loaded.
    """
    put(guest, modules)
    for module in modules:
        guest.run(f"! [ -e /sys/module/{module.name} ] || modprobe -r {module.name}", timeout=LOAD_TIMEOUT)
    load(guest, modules)
