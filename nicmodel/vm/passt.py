"""User-mode networking: passt between a NIC's wire and the host's own sockets, without any privilege.

passt(1) takes Ethernet frames on a UNIX stream socket, each after its length (32 bits, big-endian), as QEMU's
`-netdev stream` and nicmodel's stream wire send them, and terminates the guest's TCP and UDP on the host.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from nicmodel.vm.errors import VmError
from nicmodel.vm.packages import Packages, obtain
from nicmodel.vm.qemu import spawn

PASST = Packages("passt", ("passt",), suite="trixie-backports")

# passt changes its credentials and namespaces, which makes the kernel forget that it should die with its parent
# (PR_SET_PDEATHSIG). So a shell waits for this process's end of a pipe to close, and ends passt then.
BOUND_TO_STDIN = 'exec 3<&0; "$@" </dev/null & child=$!; { read _ <&3; kill $child; } & wait $child'


class Passt:
    """A running passt. Use it as a context manager; it serves one client after the other on `socket`.

    The guest gets `address`/24 by DHCP, or takes it itself. What it sends to `gateway` reaches the host's loopback; the
    rest goes where the host's own routes lead. A host without any route but loopback will do.

    Args:
        forward: Port of the guest's by port of the host's: TCP connections to 127.0.0.1 on the one reach the guest on
            the other, and seem to come from `gateway`.
        address: The guest's IPv4 address.
        gateway: The host's IPv4 address as the guest sees it.
        mac: The host's MAC address as the guest sees it.
        mtu: Bytes; announced by DHCP.
        socket: Path of the socket; one in a temporary folder if None.
    """

    def __init__(
        self,
        forward: Mapping[int, int] | None = None,
        *,
        address: str = "10.0.2.15",
        gateway: str = "10.0.2.2",
        mac: str = "52:55:0a:00:02:02",
        mtu: int = 1500,
        socket: Path | None = None,
    ) -> None:
        self.forward = dict(forward or {})
        self.address = address
        self.gateway = gateway
        self.mac = mac
        self.mtu = mtu
        self._folder = tempfile.TemporaryDirectory(prefix="nicmodel-passt-")
        self.socket = socket or Path(self._folder.name) / "passt.sock"

    def arguments(self) -> list[str]:
        """Passt's arguments."""
        words = ["--foreground", "--ipv4-only", "--chroot-fallback", "--socket", str(self.socket)]
        words += ["--address", self.address, "--netmask", "24", "--gateway", self.gateway, "--mac-addr", self.mac]
        words += ["--mtu", str(self.mtu)]
        for host, guest in self.forward.items():
            words += ["--tcp-ports", f"127.0.0.1/{host}:{guest}"]
        if os.geteuid() == 0:
            words += ["--runas", "0:0"]  # it would become "nobody", who need not exist or own the socket's folder
        return words

    def __enter__(self) -> Self:
        command = obtain(PASST).command("usr/bin/passt", *self.arguments())
        log = Path(self._folder.name) / "log"
        with log.open("wb") as output:
            self._process = spawn(
                ["sh", "-c", BOUND_TO_STDIN, "sh", *command], stdin=subprocess.PIPE, stdout=output, stderr=output
            )
        for _ in range(200):
            if "You can now start qemu" in log.read_text(errors="replace"):
                return self
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        said = log.read_text(errors="replace").strip()
        self.__exit__(None, None, None)
        raise VmError(f"passt did not start: {said}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()
