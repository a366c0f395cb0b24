"""iPXE, whose driver is another than Linux's: a guest without a disk starts from the network, over the NIC."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from nicmodel.vm.packages import Packages, obtain
from nicmodel.vm.passt import Passt
from nicmodel.vm.qemu import find_qemu, spawn
from nicmodel.vm.server import NicServer

pytestmark = pytest.mark.guest

#: What iPXE runs first: it asks for an address, and fetches the rest.
BEGINS = """#!ipxe
dhcp || reboot
chain http://{host}/next || reboot
"""
#: Between the two the driver gives its queues up and makes new ones, but not while it still sends, which it does not
#: bear (docs/found.md). The second is from another port: iPXE does not wait for the end of its connections, and begins
#: with the same port of its own.
GOES_ON = """#!ipxe
imgfetch http://{host}/data || reboot
imgstat
sleep 2
ifclose net0
dhcp || reboot
imgfree data
imgfetch http://{other}/data || reboot
echo both have come, and this is the end
reboot
"""
SIZE = 300_000


class Files(http.server.SimpleHTTPRequestHandler):
    """Those of a folder, and not a word on standard error."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """Over HTTP, at a port of this host's loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@pytest.mark.parametrize("suite", ["trixie", pytest.param("forky", marks=pytest.mark.long)])
def test_network_boot(suite: str, tmp_path: Path) -> None:
    """*Steps*: address by DHCP, a script and 300,000 bytes by HTTP; down and up; the same again.

    *Verify*: iPXE says that it has all of it, and no rule is broken.
    """
    firmware = obtain(Packages("ipxe", ("ipxe",), suite=suite, keep="ipxe$")).path / "usr/lib/ipxe/ipxe.lkrn"
    qemu, console = find_qemu(), tmp_path / "console"
    with (
        Passt() as passt, served(tmp_path) as port, served(tmp_path) as other,
        NicServer(["--wire", f"stream:{passt.socket}", "--check"]) as nic,
    ):  # fmt: skip
        ports = {"host": f"{passt.gateway}:{port}", "other": f"{passt.gateway}:{other}"}
        (tmp_path / "begins.ipxe").write_text(BEGINS.format(**ports))
        (tmp_path / "next").write_text(GOES_ON.format(**ports))
        (tmp_path / "data").write_bytes(bytes(SIZE))
        device = {"driver": "vfio-user-pci", "rombar": 0, "socket": {"type": "unix", "path": str(nic.sockets[0])}}
        command = [
            *qemu.command, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-serial", f"file:{console}", "-machine", "q35,memory-backend=ram,graphics=off", "-cpu", "max",
            "-m", "256M", "-object", "memory-backend-memfd,id=ram,size=256M,share=on", "-device", json.dumps(device),
            "-kernel", str(firmware), "-initrd", str(tmp_path / "begins.ipxe"),
        ]  # fmt: skip
        with spawn(command, qemu.environment) as process:
            try:
                process.wait(200)
            except subprocess.TimeoutExpired:
                pytest.fail(f"iPXE has not come to its end:\n{console.read_text(errors='replace')}")
            finally:
                process.kill()
        said = console.read_text(errors="replace")
        assert "both have come" in said, said
        assert re.search(rf"data : {SIZE} bytes", said), said
        assert nic.findings() == ""
        [report] = nic.report()
        assert report["wire"]["rx_bytes"] > 2 * SIZE
