"""Files and folders of the host's in the guest.

A shared folder is virtiofs: a vhost-user device of QEMU's with virtiofsd, from Debian's packages, at the other end.
All of Debian's kernels have virtiofs; its cloud kernels lack 9p. The device is plugged in like a NIC, so a guest that
starts from a snapshot may have one.
"""

import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nicmodel.vm.errors import VmError
from nicmodel.vm.packages import Packages, obtain
from nicmodel.vm.qemu import spawn

# Of what the package depends on, only its libraries: the rest is for user namespaces, which are not used.
VIRTIOFSD = Packages("virtiofsd", ("virtiofsd",), "trixie", keep=r"virtiofsd|(libc6|libgcc-s1|libcap-ng0|libseccomp2)$")

#: How many ports a machine with shares has at least, so that one snapshot serves guests of up to so many.
_PORTS = 4
#: Requests that may wait at the device.
_QUEUE_SIZE = 1024


@dataclass(frozen=True)
class Share:
    """A folder of the host's that the guest has mounted. Each sees at once what the other writes.

    Attributes:
        path: The folder on the host.
        place: Where it is in the guest, an absolute path; the folder is made.
        readonly: The guest cannot write there.
    """

    path: Path
    place: str
    readonly: bool = False

    @classmethod
    def parse(cls, text: str) -> "Share":
        """From HOST[:GUEST][:ro]; GUEST is /mnt/<name of the folder> if it is not given.

        Raises:
            VmError: There is no such folder, or GUEST is no absolute path.
        """
        readonly = not os.path.exists(text) and text.endswith(":ro")
        path, place = _split(text.removesuffix(":ro") if readonly else text, "--share")
        return cls(path, place or f"/mnt/{path.resolve().name}", readonly)

    def check(self) -> None:
        """Look whether it can be shared.

        Raises:
            VmError: It is no folder.
        """
        if not self.path.is_dir():
            what = "is no folder: --put copies files" if self.path.exists() else "does not exist"
            raise VmError(f"the folder to share, {self.path}, {what}")
        if not self.place.startswith("/"):
            raise VmError(f"the folder {self.path} has to be at an absolute path in the guest, not '{self.place}'")


def parse_put(text: str) -> tuple[str, Path]:
    """From FILE[:GUEST]: the path in the guest, and the file. GUEST may be a folder that ends in /; else it is /root.

    Raises:
        VmError: GUEST is no absolute path.
    """
    path, place = _split(text, "--put")
    place = place or "/root/"
    return f"{place}{path.name}" if place.endswith("/") else place, path


def check_puts(files: Mapping[str, Path]) -> None:
    """Look whether files can be copied.

    Raises:
        VmError: One is no file, or the guest's path is not absolute.
    """
    for place, path in files.items():
        if not path.is_file():
            what = "is no file: --share shares folders" if path.exists() else "does not exist"
            raise VmError(f"the file to put into the guest, {path}, {what}")
        if not place.startswith("/"):
            raise VmError(f"the file {path} has to be at an absolute path in the guest, not '{place}'")


def _split(text: str, option: str) -> tuple[Path, str]:
    """HOST and GUEST, "" if there is none. A name with a colon is taken for HOST alone if there is such a file."""
    host, colon, guest = text.rpartition(":")
    if not colon or os.path.exists(text):
        return Path(text).expanduser(), ""
    if not guest.startswith("/"):
        raise VmError(f"{option} '{text}': the guest's path, '{guest}', begins with /")
    return Path(host).expanduser(), guest


class ShareServer:
    """Serves a folder to one QEMU, and ends with it.

    Args:
        share: The folder.
        number: Of the guest's shares; the device is named by it.
        folder: For the socket and what the server says.

    Attributes:
        name: QEMU's name for the device; also the tag by which the guest mounts it.
        connection: The socket that QEMU is to inherit.
    """

    def __init__(self, share: Share, number: int, folder: Path) -> None:
        self.name = share_name(number)
        self._log = folder / f"{self.name}.log"
        # The path is short-lived, and its folder as short as a socket's path has to be.
        with tempfile.TemporaryDirectory(prefix="nicmodel-") as place, socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"{place}/socket")
            listening.listen(1)
            self.connection = socket.socket(socket.AF_UNIX)
            self.connection.connect(f"{place}/socket")
            command = obtain(VIRTIOFSD).command("usr/libexec/virtiofsd", *_arguments(share, listening.fileno()))
            with self._log.open("wb") as log:
                self._process = spawn(command, stdout=log, stderr=log, pass_fds=[listening.fileno()])

    def words(self) -> list[str]:
        """QEMU's arguments for its end."""
        return ["-chardev", f"socket,id={self.name},fd={self.connection.fileno()}"]

    def device(self) -> dict[str, Any]:
        """The device, as QMP's `device_add` takes it."""
        return {
            "driver": "vhost-user-fs-pci",
            "id": self.name,
            "chardev": self.name,
            "tag": self.name,
            "queue-size": _QUEUE_SIZE,
            "bus": f"{self.name}-port",
        }

    def said(self) -> str:
        """What it has complained about."""
        return self._log.read_text(errors="replace").strip()

    def close(self) -> None:
        """End it."""
        self.connection.close()
        self._process.kill()
        self._process.wait()


def share_name(number: int) -> str:
    """QEMU's name for a guest's share, and the tag that the guest mounts it by."""
    return f"share{number}"


def ports(count: int) -> list[str]:
    """QEMU's arguments for the PCIe ports of so many shares."""
    words = []
    for number in range(max(count, _PORTS) if count else 0):
        words += ["-device", f"pcie-root-port,id={share_name(number)}-port,chassis=9,slot={number}"]
    return words


def mount(share: Share, number: int) -> str:
    """Shell's words that mount it in the guest, with the place as their first argument."""
    return f'mkdir -p "$1" && mount -t virtiofs {"-o ro " if share.readonly else ""}{share_name(number)} "$1"'


def _arguments(share: Share, descriptor: int) -> list[str]:
    words = ["--fd", str(descriptor), "--shared-dir", str(share.path.resolve()), "--log-level", "error"]
    # Nothing is kept: a test on the host and one in the guest see each other's files as they are.
    words += ["--cache", "never", "--allow-mmap"]
    words += ["--readonly"] if share.readonly else []
    if os.geteuid() == 0:
        return [*words, "--sandbox", "chroot"]
    # Without rights nothing can be entered; but neither can the guest's root have more than this user's.
    owners = [f"map:0:{number}:1" for number in (os.geteuid(), os.getegid())]
    return [*words, "--sandbox", "none", "--translate-uid", owners[0], "--translate-gid", owners[1]]
