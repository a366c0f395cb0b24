"""virtme-ng (vng), which boots a kernel over this host's own files: its options for a guest with NICs."""

import json
import shlex
from collections.abc import Sequence

from nicmodel.vm.layout import Nic


def qemu_options(nics: Sequence[Nic]) -> str:
    """What `vng --qemu-opts` is to be given for NICs.

    vng puts it into a shell's command as it is: it is a shell's text itself, in which each device is quoted.
    """
    words = []
    for number, nic in enumerate(nics):
        socket = {"type": "unix", "path": str(nic.socket)}
        device = {"driver": "vfio-user-pci", "id": nic.id or f"nic{number}", "rombar": 0, "socket": socket}
        words += ["-device", json.dumps(device | dict(nic.properties))]
    return shlex.join(words)


def vng_options(memory: str) -> list[str]:
    """Vng's other options for a guest with NICs, each one word.

    Args:
        memory: Such as "2G".

    `--numa` is what makes QEMU share the guest's memory, in which the NICs write; without it vng does so only where it
    has virtiofsd. It also makes the guest a PC: vng's other machine, microvm, has no PCI.
    """
    return [f"--memory={memory}", f"--numa={memory}"]


def vng_command(kernel: str, nics: Sequence[Nic], memory: str, more: Sequence[str] = ()) -> list[str]:
    """A command of vng's.

    Args:
        kernel: As `vng --run` takes it: a bzImage, or a folder in which one was built.
        nics: The NICs.
        memory: Of the guest.
        more: What vng is given besides.
    """
    options = [f"--run={kernel}", "--user=root", *vng_options(memory)]
    # The last option before a command: vng takes all that follows it for QEMU's.
    return ["vng", *options, *more, f"--qemu-opts={qemu_options(nics)}"]
