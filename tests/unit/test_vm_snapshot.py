"""Where snapshots of guests are kept: made once, one for each kind of guest, and not too many."""

import os
import threading
from pathlib import Path

import pytest

from nicmodel.vm import snapshot
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.image import Image
from nicmodel.vm.layout import Nic
from nicmodel.vm.qemu import Qemu


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "nicmodel/snapshots"


def build(folder: Path) -> None:
    (folder / "state").write_bytes(b"state")
    (folder / "console").write_bytes(b"console")


def obtain(name: str) -> snapshot.Snapshot:
    found = snapshot.obtain(name, build)
    os.close(found.state)
    return found


def test_it_is_made_once() -> None:
    """*Steps*: eight threads ask at the same time. *Verify*: all get it, and one has made it."""
    made = []
    found = []

    def slowly(folder: Path) -> None:
        made.append(folder)
        build(folder)

    def ask() -> None:
        one = snapshot.obtain("abc", slowly)
        found.append((os.pread(one.state, 100, 0), one.console))
        os.close(one.state)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(b"state", b"console")] * 8
    assert len(made) == 1


def test_what_could_not_be_made_leaves_nothing(cache: Path) -> None:
    def fail(folder: Path) -> None:
        build(folder)
        raise VmError("no room")

    with pytest.raises(VmError, match="no room"):
        snapshot.obtain("abc", fail)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    obtain("abc")


def test_an_open_one_outlives_its_deletion() -> None:
    found = snapshot.obtain("abc", build)
    found.drop()
    assert not found.folder.exists()
    assert Path(found.path).read_bytes() == b"state"
    os.close(found.state)
    assert obtain("abc").folder.exists()


def test_those_unused_for_longest_are_deleted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number; what is used again becomes young again."""
    monkeypatch.setattr(snapshot, "KEPT", 3)
    for age, name in enumerate(["a", "b", "c"]):
        obtain(name)
        os.utime(cache / name, (1000 + age, 1000 + age))
    obtain("a")
    obtain("d")
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {"a", "c", "d"}


def test_those_that_are_too_large_together_are_deleted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what they take on the disk, where holes take nothing. The newest stays, however large."""

    def large(folder: Path) -> None:
        build(folder)
        with (folder / "state").open("r+b") as file:
            file.write(bytes(1 << 20))
            file.truncate(1 << 40)

    monkeypatch.setattr(snapshot, "KEPT_BYTES", 5 << 19)
    for age, name in enumerate(["a", "b", "c"]):
        os.close(snapshot.obtain(name, large).state)
        os.utime(cache / name, (1000 + age, 1000 + age))
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {"b", "c"}
    monkeypatch.setattr(snapshot, "KEPT_BYTES", 100)
    os.close(snapshot.obtain("d", large).state)
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {"d"}


def name_of(folder: Path, config: GuestConfig, *, version: str = "11.1", accel: str = "tcg") -> str:
    """The name of the snapshot of such a guest."""
    guest = Guest(config)
    for file in ("qemu", "vmlinuz", "initrd"):
        if not (folder / file).exists():
            (folder / file).write_text(file)
            os.utime(folder / file, (1000, 1000))
    guest._image = Image(folder / "vmlinuz", folder / "initrd", "7.2")
    guest._qemu = Qemu((str(folder / "qemu"), "-L", "share"), version)
    guest._acceleration = guest.accel = accel
    return guest._snapshot_name()


def test_guests_that_differ_only_in_nics_share_one(tmp_path: Path) -> None:
    plain = name_of(tmp_path, GuestConfig())
    nics = [Nic("/a"), Nic("/b", id="other", properties={"x-msg-timeout": 1})]
    assert name_of(tmp_path, GuestConfig(nics=nics)) == plain
    assert name_of(tmp_path, GuestConfig()) == plain


def test_guests_that_differ_in_anything_else_do_not(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_text("disk")
    configs = [
        GuestConfig(),
        GuestConfig(nics=[Nic(f"/{number}") for number in range(5)]),
        GuestConfig(vcpus=1),
        GuestConfig(memory="512M"),
        GuestConfig(device_memory={"hbm": 2 << 20}),
        GuestConfig(device_memory={"hbm": 4 << 20}),
        GuestConfig(device_memory={"other": 4 << 20}),
        GuestConfig(accelerators={"hbm": 2 << 20}),
        GuestConfig(layout="switch"),
        GuestConfig(cpu="EPYC"),
        GuestConfig(cmdline="quiet"),
        GuestConfig(disks=[disk]),
        GuestConfig(prepare="true"),
    ]
    names = [name_of(tmp_path, config) for config in configs]
    names += [name_of(tmp_path, GuestConfig(), version="11.2"), name_of(tmp_path, GuestConfig(), accel="kvm")]
    for file in ("qemu", "vmlinuz", "initrd"):
        (tmp_path / file).write_text(f"another {file}")
        names.append(name_of(tmp_path, GuestConfig()))
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GuestConfig(), ""),
        (GuestConfig(nics=[Nic("/a")]), ""),
        (GuestConfig(nics=[Nic("/a"), Nic("/b")], layout="two-nics"), ""),
        (GuestConfig(nics=[Nic("/a")], layout="switch", accelerators={"hbm": 4096}), ""),
        (GuestConfig(nics=[Nic("/a")], layout="iommu"), "layout iommu"),
        (GuestConfig(nics=[Nic("/a", properties={"bus": "pcie.0"})]), "not behind a port"),
        (GuestConfig(arguments=("-netdev", "user,id=n0")), "arguments of QEMU's"),
    ],
)
def test_which_guests_boot(tmp_path: Path, config: GuestConfig, reason: str) -> None:
    guest = Guest(config)
    guest._image, guest._acceleration = Image(Path("/vmlinuz"), Path("/initrd"), "7.2"), "tcg"
    assert (reason in guest._why_no_snapshot()) if reason else guest._why_no_snapshot() == ""
