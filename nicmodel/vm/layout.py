"""Machine layouts: the files of `qemu-configs/`, read and filled in.

A layout file holds QEMU's arguments as a shell would read them (quotes, `${NAME}`, `${NAME:-default}`), so that the
very same file also serves whoever starts QEMU by hand; each file says how.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nicmodel.vm.errors import VmError

FOLDER = Path(__file__).parents[2] / "qemu-configs"

LAYOUTS = {
    "q35": "q35.args",
    "two-nics": "two-nics.args",
    "switch": "pcie-switch.args",
    "iommu": "intel-iommu.args",
}


@dataclass(frozen=True)
class Nic:
    """A NIC of the guest's: a vfio-user server that listens on a UNIX socket.

    Attributes:
        socket: Path of the socket.
        id: QEMU's name for the device; the layout's (`nic0`, `nic1`, …) if None.
        properties: Further properties of QEMU's device `vfio-user-pci`, such as `bus`, `addr` or `x-msg-timeout`.
    """

    socket: str | Path
    id: str | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)


def arguments(layout: str, nics: Sequence[Nic], variables: Mapping[str, str]) -> list[str]:
    """QEMU's arguments for a layout.

    Args:
        layout: A key of `LAYOUTS`.
        nics: The NICs. A line of the file that names `${SOCKET}` or `${N}` is there once for each of them; `${SOCKET0}`
            and so on name one.
        variables: Values for the file's other variables, by name.

    Raises:
        VmError: There is no such layout, or it wants another number of NICs.
    """
    try:
        text = (FOLDER / LAYOUTS[layout]).read_text()
    except KeyError:
        raise VmError(f"no layout '{layout}': say one of {', '.join(LAYOUTS)}") from None
    sockets = {f"SOCKET{n}": str(nic.socket) for n, nic in enumerate(nics)}
    words = []
    for line in text.splitlines():
        if re.search(r"\$\{(SOCKET|N)\b", line):
            for n, nic in enumerate(nics):
                filled = _fill(line, {**variables, "N": str(n), "SOCKET": str(nic.socket)}, layout)
                words += [_with_properties(word, nic) for word in filled]
        elif numbered := re.search(r"\$\{SOCKET(\d+)\}", line):
            filled = _fill(line, sockets, layout)
            words += [_with_properties(word, nics[int(numbered[1])]) for word in filled]
        else:
            words += _fill(line, variables, layout)
    return words


def _fill(line: str, variables: Mapping[str, str], layout: str) -> list[str]:
    """The words of `line`, variables replaced inside them as by a shell."""

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        if not (found := variables.get(name) or default) and name.startswith("SOCKET"):
            raise VmError(f"layout '{layout}' wants more NICs: there is none for {name}")
        return found or ""

    words = shlex.split(line, comments=True)
    return [re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", value, word) for word in words]


def _with_properties(word: str, nic: Nic) -> str:
    """Add the NIC's own properties to a device that is written as JSON; other words are left alone."""
    if not word.startswith("{"):
        return word
    # QEMU accepts single quotes in JSON, which saves the layout files from quoting quotes.
    device = json.loads(word.replace("'", '"')) | dict(nic.properties)
    if nic.id:
        device["id"] = nic.id
    return json.dumps(device)
