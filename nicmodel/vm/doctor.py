"""All that one may want to know of a host before a guest is booted on it."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nicmodel.cache import cache_dir
from nicmodel.jit.cache import CACHE, functions_cached
from nicmodel.observe.compiling import DURATION
from nicmodel.vm import host
from nicmodel.vm.arch import AMD64, ARM64, Arch
from nicmodel.vm.compiler import COMPILER
from nicmodel.vm.errors import VmError
from nicmodel.vm.host import Check, State
from nicmodel.vm.packages import KEYRING, mirror, obtained
from nicmodel.vm.qemu import known_acceleration, system_qemu
from nicmodel.vm.resources import available_memory, processors

#: Bytes of memory that a guest with one NIC may come to take, with QEMU and server.
_GUEST = 1500 << 20


def python() -> Check:
    """Python and the processor."""
    found = f"{platform.python_implementation()} {platform.python_version()} on {platform.machine()}"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return Check("Python", State.BAD, found, "Guests and their QEMU are for Linux on x86-64")
    return Check("Python", State.GOOD, found)


def guest_memory() -> Check:
    """memfd_create: how QEMU shares a guest's memory with the NIC."""
    try:
        os.close(os.memfd_create("nicmodel-doctor"))
    except (AttributeError, OSError) as error:
        return Check("memfd", State.BAD, f"a guest's memory cannot be shared: {error}")
    return Check("memfd", State.GOOD, "a guest's memory can be shared")


def resources() -> Check:
    """Processors and memory, as far as this process may use them."""
    memory = available_memory()
    found = f"{processors()} processors may be used, and {memory / 1e6:,.0f} MB of memory"
    if memory < _GUEST:
        advice = f"A guest and its NIC may take {_GUEST / 1e6:,.0f} MB: end other programs, or give this machine more"
        return Check("resources", State.LIMITED, found, advice)
    return Check("resources", State.GOOD, found)


def user_namespaces() -> Check:
    """Whether this user may have user namespaces; who may make devices in a chroot needs none."""
    check = host.user_namespaces()
    if check.state is State.BAD and host.can_make_devices(cache_dir()):
        return replace(check, state=State.LIMITED)
    return check


def compiled() -> Check:
    """Whether the packet path is compiled."""
    if CACHE is None:
        return Check("compiled code", State.LIMITED, f"cannot be kept: every start compiles, {DURATION}",
                     "See cache folder")  # fmt: skip
    if not (count := functions_cached()):
        return Check("compiled code", State.GOOD, f"none yet: the first start compiles, {DURATION}")
    return Check("compiled code", State.GOOD, f"{count} functions of these sources are kept")


def qemu() -> Check:
    """Which QEMU would be used."""
    return _qemu("QEMU", AMD64)


def qemu_arm64() -> Check:
    """Which QEMU would be used for arm64 guests; nothing else needs it."""
    check = _qemu("QEMU for arm64", ARM64)
    return replace(check, state=State.LIMITED) if check.state is State.BAD else check


def _qemu(subject: str, arch: Arch) -> Check:
    try:
        if found := system_qemu(arch):
            return Check(subject, State.GOOD, f"{found.version} ({found.command[0]})")
    except VmError as error:
        return Check(subject, State.BAD, str(error), f"Correct {arch.qemu_variable}, or unset it")
    if tree := obtained(arch.qemu_packages):
        return Check(subject, State.GOOD, f"{tree.versions[arch.qemu]}, from Debian's packages, in the cache")
    return Check(subject, State.GOOD, "will be downloaded from Debian's packages: this host has none from 10.1 on")


def kvm() -> Check:
    """Whether guests run on this processor or on an emulated one."""
    if named := os.environ.get("NICMODEL_ACCEL"):
        return Check("KVM", State.GOOD, f"NICMODEL_ACCEL says {named}")
    slow = "guests run on QEMU's emulated CPU, several times slower"
    device = Path("/dev/kvm")
    if not device.exists():
        return Check("KVM", State.LIMITED, f"there is no {device}: {slow}",
                     "On a computer of your own: switch on virtualisation in its firmware. On a virtual machine: "
                     "ask for nested virtualisation")  # fmt: skip
    if not os.access(device, os.R_OK | os.W_OK):
        by_group = device.stat().st_mode & stat.S_IWGRP and device.stat().st_gid
        advice = (
            f"sudo usermod -aG {device.group()} $USER, then log in again" if by_group else "sudo chmod o+rw /dev/kvm"
        )
        return Check("KVM", State.LIMITED, f"{device} is not yours to open: {slow}", advice)
    known = known_acceleration()
    if known == "tcg":
        return Check("KVM", State.LIMITED, f"{device} is there, but it does not run the guest's kernel: {slow}")
    return Check("KVM", State.GOOD, "works" if known else f"{device} opens; the first guest is a trial")


def tun() -> Check:
    """Whether this user can make taps."""
    device = Path("/dev/net/tun")
    instead = "Wires for everybody: stream (passt, QEMU), dgram, link, switch, pcap"
    if not os.access(device, os.R_OK | os.W_OK):
        state = f"{device} is not yours to open" if device.exists() else f"there is no {device}"
        return Check("tap", State.LIMITED, state, instead)
    if os.geteuid():
        return Check("tap", State.GOOD, "one that root has made for you: ip tuntap add tap0 mode tap user $USER")
    return Check("tap", State.GOOD, "this user may make them")


def packages() -> Check:
    """Where Debian packages come from."""
    try:
        address = mirror()
    except VmError as error:
        return Check("packages", State.BAD, str(error))
    return Check("packages", State.GOOD, f"by apt, from {address}")


def keyring() -> Check:
    """The keys that sign Debian's archive."""
    advice = "apt install debian-archive-keyring"
    if not KEYRING.exists():
        return Check("keyring", State.LIMITED, f"{KEYRING} is missing: apt's own keys have to do", advice)
    return Check("keyring", State.GOOD, str(KEYRING))


def room() -> Check:
    """Space: what is there already is not needed again."""
    return host.room(0 if obtained(COMPILER) else host.ROOM)


CHECKS: tuple[Callable[[], Check], ...] = (
    *(python, resources, guest_memory, host.programs, host.building, user_namespaces),
    *(host.cache, room, compiled, packages, keyring, qemu, qemu_arm64, kvm, tun),
)


def examine() -> list[Check]:
    """All checks, one after the other; none downloads anything or leaves anything behind."""
    return [_safely(check) for check in CHECKS]


def _safely(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (VmError, OSError) as error:
        return Check(check.__name__.replace("_", " "), State.BAD, str(error))
