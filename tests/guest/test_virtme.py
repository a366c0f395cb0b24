"""virtme-ng: the documentation's recipe, as it is printed, and the script of `nicmodel nipa` in such a guest."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from nicmodel.vm.kernel import DEFAULT_KERNEL
from nicmodel.vm.layout import Nic
from nicmodel.vm.nipa import sockets, write_runner
from nicmodel.vm.packages import obtain
from nicmodel.vm.qemu import find_qemu
from nicmodel.vm.server import NicServer
from nicmodel.vm.share import VIRTIOFSD
from nicmodel.vm.virtme import vng_command

pytestmark = [
    pytest.mark.guest,
    pytest.mark.long,
    pytest.mark.skipif(
        not all(map(shutil.which, ("vng", "depmod", "busybox"))), reason="wants virtme-ng, kmod and busybox-static"
    ),
]

PAGE = Path(__file__).parents[2] / "docs/guest.md"
#: After the script of a runner: the driver, and whether the other end's address is found by what the NICs carry.
TRY = """
ethtool -i "$NETIF"
for address in "$REMOTE_V4" "$REMOTE_V6"; do
    for try in $(seq 20); do
        bash -c "echo >/dev/udp/$address/9"
        ip neighbour show "$address" | grep lladdr && break
        sleep 0.5
    done
done
"""


def in_guest(command: str, folder: Path) -> str:
    """Run a command of vng's, on programs of the cache; what it prints. Its status is not the guest's, without udev."""
    programs = folder / "bin"
    programs.mkdir()
    virtiofsd = obtain(VIRTIOFSD).command("usr/libexec/virtiofsd")
    for name, words in {"qemu": find_qemu().shell_words(), "virtiofsd": virtiofsd}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=os.environ | {"PATH": path}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=600,
    )  # fmt: skip
    return run.stdout


def test_the_recipe_works_as_printed(tmp_path: Path) -> None:
    [recipe] = re.findall(r":name: vng-recipe\n\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with NicServer(["--wire", "link"], sockets=2) as server:
        # On this host: its sockets, a stock kernel, an emulated CPU, and the QEMU of the cache.
        here = recipe
        for number, socket in enumerate(server.sockets):
            assert f"/tmp/nic{number}.sock" in here
            here = here.replace(f"/tmp/nic{number}.sock", str(socket))
        image = shlex.quote(str(DEFAULT_KERNEL.find().image))
        qemu = shlex.quote(f"{tmp_path}/bin/qemu")
        here = here.replace("vng --run arch/x86/boot/bzImage", f"vng -v --disable-kvm --qemu {qemu} --run {image}")
        said = in_guest(here, tmp_path)
    assert re.search(r"^eth0 .*^eth1 ", said, re.DOTALL | re.MULTILINE), said


def test_a_runners_script(tmp_path: Path) -> None:
    """The script exports what the tests read, and both ends reach each other."""
    write_runner(
        tmp_path, name="mine", tree=tmp_path, branches="https://h/b", url="https://h", driver="gve",
        pci=(0x1AE0, 0x42), version="0", memory="1G",
    )  # fmt: skip
    with NicServer(["--wire", "link"], sockets=2) as server:
        for path, socket in zip(sockets(tmp_path), server.sockets, strict=True):
            path.symlink_to(socket)
        more = ["--verbose", "--disable-kvm", f"--qemu={tmp_path}/bin/qemu"]
        nics = [Nic(path) for path in sockets(tmp_path)]
        command = vng_command(str(DEFAULT_KERNEL.find().image), nics, "1G", more)
        said = in_guest(shlex.join([*command, "--", f". {tmp_path}/setup.sh; {TRY}"]), tmp_path)
    assert "driver: gve" in said, said
    assert re.search(r"^192.0.2.2 .*lladdr.*^2001:db8:1::2 .*lladdr", said, re.DOTALL | re.MULTILINE), said
