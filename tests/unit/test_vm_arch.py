"""Guests of another architecture: their machine, their QEMU, their packages, and what they are without."""

from pathlib import Path

import pytest

from nicmodel.vm import doctor, image, qemu
from nicmodel.vm.arch import AMD64, ARCHES, ARM64, arch_named
from nicmodel.vm.compiler import cross_compiler
from nicmodel.vm.coverage.recorder import Recorder
from nicmodel.vm.dpdk import obtain_dpdk
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import GuestConfig, qemu_arguments
from nicmodel.vm.host import State
from nicmodel.vm.image import Image
from nicmodel.vm.kernel import Kernel
from nicmodel.vm.layout import LAYOUTS
from nicmodel.vm.packages import Packages
from nicmodel.vm.qemu import Qemu, acceleration, find_qemu, too_old

IMAGE = Image(Path("/Image"), Path("/initrd"), "7.3", ARM64)
QEMU = Qemu(("/opt/qemu",), "11")


def test_every_layout_is_of_one_architecture() -> None:
    assert sorted(layout for arch in ARCHES.values() for layout in arch.layouts) == sorted(LAYOUTS)


def test_a_machine() -> None:
    words = " ".join(qemu_arguments(GuestConfig(arch="arm64", cmdline="quiet"), IMAGE, "tcg", {}))
    assert "-machine virt,gic-version=3,memory-backend=ram " in words
    assert "-cpu max,pauth=off " in words and "console=ttyAMA0 quiet" in words


def test_what_is_none_of_its_machines() -> None:
    with pytest.raises(VmError, match="layout 'switch' is none of an arm64 guest's: say virt"):
        qemu_arguments(GuestConfig(layout="switch"), IMAGE, "tcg", {})
    with pytest.raises(VmError, match="layout 'virt' is none of an amd64 guest's: say q35 or two-nics"):
        qemu_arguments(GuestConfig(layout="virt"), Image(Path("/k"), Path("/i"), "7.3"), "tcg", {})
    with pytest.raises(VmError, match="layout 'virt' has no accelerators"):
        qemu_arguments(GuestConfig(accelerators={"hbm": 4096}), IMAGE, "tcg", {"hbm": "/x"})
    with pytest.raises(VmError, match="no guests of architecture 'arm46': say amd64 or arm64; did you mean 'arm64'"):
        arch_named("arm46")


@pytest.mark.parametrize(("named", "found"), [("", "tcg"), ("kvm", "tcg"), ("tcg,thread=single", "tcg,thread=single")])
def test_its_processor_is_emulated(named: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever works for guests of the host's own architecture."""
    monkeypatch.setattr("os.access", lambda *_: True)
    monkeypatch.delenv("NICMODEL_ACCEL", raising=False)
    if named:
        monkeypatch.setenv("NICMODEL_ACCEL", named)
    assert acceleration(QEMU, IMAGE) == found


def test_each_has_a_qemu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    find_qemu.cache_clear()
    monkeypatch.setattr(qemu, "_usable", lambda command, environment=None: Qemu(command, "11"))
    monkeypatch.setenv("NICMODEL_QEMU", "/opt/x86")
    monkeypatch.setenv("NICMODEL_QEMU_ARM64", "/opt/arm")
    try:
        assert [find_qemu(arch).command for arch in (AMD64, ARM64)] == [("/opt/x86",), ("/opt/arm",)]
    finally:
        find_qemu.cache_clear()
    monkeypatch.setattr(qemu, "_usable", lambda command, environment=None: None)
    with pytest.raises(VmError, match=r"/opt/arm .NICMODEL_QEMU_ARM64. does not run"):
        qemu.system_qemu(ARM64)
    check = doctor.qemu_arm64()
    assert check.state is State.LIMITED and "NICMODEL_QEMU_ARM64" in check.advice


def test_where_to_get_one() -> None:
    assert "backports qemu-system-arm" in too_old(ARM64) and "nicmodel vm --arch arm64 --prepare" in too_old(ARM64)


def test_packages_of_another_architecture_are_another_request() -> None:
    own, other = image.userland(AMD64), image.userland(ARM64)
    assert own == image.USERLAND and own.key != other.key
    assert own.key == Packages("guest", own.wanted, own.suite).key
    # The compilers run here.
    assert cross_compiler(ARM64).architecture == AMD64.name


def test_coverage_is_of_this_hosts_architecture(tmp_path: Path) -> None:
    kernel = Kernel("mine", "7.3", Path(), {}, {}, None, "", None, "", ARM64)
    with (
        pytest.raises(VmError, match="coverage is told of amd64 code only"),
        Recorder().recording(kernel, QEMU, 1, tmp_path),
    ):
        pass


def test_dpdk_is_of_this_hosts_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded for another."""
    monkeypatch.setattr("nicmodel.vm.dpdk.obtain", lambda *_, **__: pytest.fail("packages are fetched"))
    with pytest.raises(VmError, match="amd64 guests only, and this guest is arm64"):
        obtain_dpdk(ARM64)
