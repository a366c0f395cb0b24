"""Guests with a kernel that is given by its file, and with folders and files of the host's."""

from __future__ import annotations

import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nicmodel.cache import cache_dir
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.kernel import BZIMAGE, DEFAULT_KERNEL, KERNELS, OwnKernel
from nicmodel.vm.layout import Nic
from nicmodel.vm.server import NicServer
from nicmodel.vm.share import Share

pytestmark = pytest.mark.guest

PAGE = Path(__file__).parents[2] / "docs/guest.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to share, whose name is awkward for shells and for QEMU."""
    folder = tmp_path / "a folder, of 'mine'"
    folder.mkdir()
    (folder / "run").write_text("#!/bin/sh\necho it runs\n")
    (folder / "run").chmod(0o755)
    return folder


def test_a_kernel_by_its_file(tmp_path: Path, folder: Path) -> None:
    """The stock kernel as somebody's own, apart from its modules: the driver binds, and the guest has what it is given.

    *Verify*: it has booted; host and guest see each other's files, and the guest cannot write where it should not.
    """
    stock = DEFAULT_KERNEL.find()
    image = tmp_path / "linux, new=1" / "bzImage"
    image.parent.mkdir()
    shutil.copy(stock.image, image)
    root = next(iter(stock.modules.values())).file.parents
    modules = next(parent for parent in root if parent.name == "modules")
    with NicServer(["--wire", "none"]) as server:
        config = GuestConfig(
            nics=[Nic(server.sockets[0])],
            kernel=OwnKernel(image, modules.parent.parent),
            shares=[Share(folder, "/mnt/rw"), Share(folder, "/mnt/it's ro", readonly=True)],
            files={"/opt/new/run": folder / "run"},
        )
        with Guest(config, snapshot=False) as guest:
            assert (guest.kernel_version, guest.kernel.image) == (stock.release, image)
            assert guest.run("uname -r").stdout.strip() == stock.release
            assert guest.run("basename $(readlink /sys/class/net/eth0/device/driver)").stdout == "gve\n"
            give_and_take(guest, folder)


def give_and_take(guest: Guest, folder: Path) -> None:
    """Through two mounts of one folder and a copied file."""
    assert guest.run("/mnt/rw/run; '/mnt/it'\\''s ro/run'; /opt/new/run").stdout == "it runs\n" * 3
    guest.run("echo from the guest > /mnt/rw/new && mkdir /mnt/rw/inner && chmod 700 /mnt/rw/inner")
    assert (folder / "new").read_text() == "from the guest\n"
    assert stat.S_IMODE((folder / "inner").stat().st_mode) == 0o700
    (folder / "new").write_text("changed, and longer than before")
    assert guest.run("cat /mnt/rw/new").stdout == "changed, and longer than before"
    (folder / "new").unlink()
    assert guest.run("test ! -e /mnt/rw/new", check=False).status == 0
    refused = guest.run('touch "/mnt/it\'s ro/x"', check=False)
    assert refused.status and "Read-only file system" in refused.stderr


def test_shares_from_a_snapshot(folder: Path) -> None:
    """They are plugged in after it was read."""
    files = {"/opt/new/run": folder / "run"}
    shares = [Share(folder, "/mnt/rw"), Share(folder, "/mnt/it's ro", readonly=True)]
    with Guest(GuestConfig(shares=shares, files=files)) as guest:
        assert guest.why_booted == ""
        give_and_take(guest, folder)


@pytest.mark.long
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", ["switch", "iommu"])
def test_shares_of_every_kernel_and_layout(kernel: str, layout: str, folder: Path) -> None:
    """Those of bookworm have virtiofs as a module. After reboot and reset the guest is given its shares again."""
    files = {"/opt/new/run": folder / "run"}
    shares = [Share(folder, "/mnt/rw"), Share(folder, "/mnt/it's ro", readonly=True)]
    config = GuestConfig(kernel=KERNELS[kernel], layout=layout, memory="1536M", shares=shares, files=files)
    with Guest(config) as guest:
        for again in (None, guest.reboot, guest.reset):
            if again:
                again()
            give_and_take(guest, folder)
            shutil.rmtree(folder / "inner")


def test_a_server_that_cannot_serve_is_heard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nicmodel.vm.share._arguments", lambda share, descriptor: ["--no-such-option"])
    with pytest.raises(VmError, match="no-such-option"), Guest(GuestConfig(shares=[Share(folder, "/x")])):
        pass


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with ~/src/linux: the stock kernel, as if `make` had built it there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir().parent))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    stock, tree = DEFAULT_KERNEL.find(), tmp_path / "src/linux"
    assert stock.config_file
    for file, content in {
        str(BZIMAGE): stock.image.read_bytes(),
        "include/config/kernel.release": f"{stock.release}\n".encode(),
        "include/config/auto.conf": stock.config_file.read_bytes(),
        "modules.order": b"drivers/net/ethernet/google/gve/gve.o\ndrivers/net/dummy.o\n",
        "modules.builtin": stock.indexes["modules.builtin"],
        "drivers/net/ethernet/google/gve/gve.ko": stock.modules["gve"].content(),
        "drivers/net/dummy.ko": stock.modules["dummy"].content(),
    }.items():
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_bytes(content)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/all.sh").write_text("set -e; tool; ip link add dummy9 type dummy; lsmod\n")
    (tmp_path / "tool").write_text("#!/bin/sh\necho it runs\n")
    (tmp_path / "tool").chmod(0o755)
    return tmp_path


@pytest.mark.long
def test_the_documentations_command(home: Path) -> None:
    """A folder in which a kernel was built, tests in a share, a program that was put; as printed, but for --boot."""
    [line] = re.findall(r"^nicmodel (vm --kernel ~.*)$", PAGE.read_text(), re.MULTILINE)
    command = [sys.executable, "-m", "nicmodel.cli", *shlex.split(line.replace("~", str(home))), "--boot"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("it runs\n")
    assert re.search("^dummy ", run.stdout, re.MULTILINE)


@pytest.mark.long
def test_the_documentations_fixture(home: Path) -> None:
    [example] = re.findall(r"^```{code-block} python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (home / "test_example.py").write_text(example)
    (home / "tests/all.sh").write_text("set -e; ethtool -i eth0; uname -r\n")
    command = [sys.executable, "-m", "pytest", "-p", "nicmodel.testing.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "test_example.py"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
