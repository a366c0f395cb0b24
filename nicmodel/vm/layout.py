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
from xml.sax.saxutils import escape

from nicmodel.installation import data_folder
from nicmodel.nearest import did_you_mean
from nicmodel.vm.errors import VmError

FOLDER = data_folder("qemu-configs")

LAYOUTS = {
    "q35": "q35.args",
    "two-nics": "two-nics.args",
    "switch": "pcie-switch.args",
    "iommu": "intel-iommu.args",
    "virt": "virt.args",
}
"""Machines; `nicmodel.vm.arch` has those of each architecture."""

ACCELERATORS = {
    "q35": "accelerator.args",
    "two-nics": "accelerator.args",
    "switch": "pcie-switch-accelerator.args",
    "iommu": "accelerator.args",
}
"""What each of a machine's accelerators adds to its layout; the guest's module for them is for amd64 only."""

LIBVIRT = "libvirt.xml"
"""A domain of libvirt's, with the same variables."""

PORTS = 4
"""How many PCIe ports for NICs a machine has at least, so that one snapshot serves guests of up to four NICs."""

VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


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


@dataclass(frozen=True)
class Accelerator:
    """An accelerator of the guest's: a PCI device with memory.

    Attributes:
        name: QEMU's name for the device and for its memory.
        size: Bytes of memory.
        file: Path of the file that is the memory.
    """

    name: str
    size: int
    file: str


def arguments(
    layout: str, nics: Sequence[Nic], variables: Mapping[str, str], accelerators: Sequence[Accelerator] = ()
) -> list[str]:
    """QEMU's arguments for a layout.

    Args:
        layout: A key of `LAYOUTS`.
        nics: The NICs. A line of the file that names `${SOCKET}` is there once for each of them; `${SOCKET0}` and so on
            name one. A line that names only `${N}` is a port, and there are at least `PORTS` of them.
        variables: Values for the file's other variables, by name. Without KERNEL the line that names a kernel is left
            out, and the guest boots from a disk.
        accelerators: The accelerators: for each, the lines of the file in `ACCELERATORS`.

    Raises:
        VmError: There is no such layout, it wants another number of NICs, or it has no accelerators.
    """
    try:
        text = (FOLDER / LAYOUTS[layout]).read_text("utf-8")
    except KeyError:
        nearest = did_you_mean(layout, LAYOUTS)
        raise VmError(f"no layout '{layout}': say one of {', '.join(LAYOUTS)}{nearest}") from None
    if accelerators and layout not in ACCELERATORS:
        raise VmError(f"layout '{layout}' has no accelerators: --device-memory gives memory as a NUMA node")
    sockets = {f"SOCKET{n}": str(nic.socket) for n, nic in enumerate(nics)}
    wanted = set(re.findall(r"\$\{(SOCKET\d+)\}", text))
    if wanted and wanted != set(sockets):
        raise VmError(f"layout '{layout}' wants {len(wanted)} NICs, and {len(nics)} are given")
    words = []
    for line in text.splitlines():
        if "${KERNEL}" in line and not variables.get("KERNEL"):
            continue
        if "${SOCKET}" in line:
            for n, nic in enumerate(nics):
                words += _fill(line, {**variables, "N": str(n), "SOCKET": str(nic.socket)}, nic)
        elif re.search(r"\$\{N\b", line):
            for n in range(max(PORTS, len(nics))):
                words += _fill(line, {**variables, "N": str(n)})
        elif numbered := re.search(r"\$\{SOCKET(\d+)\}", line):
            words += _fill(line, sockets, nics[int(numbered[1])])
        else:
            words += _fill(line, variables)
    for number, accelerator in enumerate(accelerators):
        its = {
            "A": str(number),
            "ACCELERATOR": accelerator.name,
            "ACCELERATOR_FILE": accelerator.file,
            "ACCELERATOR_SIZE": str(accelerator.size),
        }
        for line in (FOLDER / ACCELERATORS[layout]).read_text("utf-8").splitlines():
            words += _fill(line, its)
    return words


def libvirt_domain(nics: Sequence[Nic], variables: Mapping[str, str]) -> str:
    """The XML of a domain of libvirt's, as `virsh define` takes it.

    Args:
        nics: The NICs, as for `arguments`.
        variables: Values for the file's other variables, by name.
    """
    lines = []
    for line in (FOLDER / LIBVIRT).read_text("utf-8").splitlines():
        if "${SOCKET}" not in line:
            lines.append(_fill_xml(line, variables))
            continue
        for n, nic in enumerate(nics):  # inside the attribute there is JSON: a path is escaped for both
            lines.append(_fill_xml(line, {**variables, "N": str(n), "SOCKET": json.dumps(str(nic.socket))[1:-1]}))
    return "\n".join(lines) + "\n"


def _fill_xml(line: str, variables: Mapping[str, str]) -> str:
    return VARIABLE.sub(lambda match: escape(_value(match, variables), {"'": "&apos;", '"': "&quot;"}), line)


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    name, default = match.groups()
    return variables.get(name) or default or ""


def without_nics(words: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """QEMU's arguments without the NICs, and the NICs as QMP's `device_add` takes them."""
    machine: list[str] = []
    nics = []
    for word in words:
        if word.startswith("{") and (device := json.loads(word))["driver"] == "vfio-user-pci":
            nics.append(device)
            machine.pop()  # "-device"
        else:
            machine.append(word)
    return machine, nics


def _fill(line: str, variables: Mapping[str, str], nic: Nic | None = None) -> list[str]:
    """The words of `line`, variables replaced inside them as by a shell; a device in JSON gets the NIC's properties."""

    def value(match: re.Match[str]) -> str:
        return _value(match, variables)

    def value_in_json(match: re.Match[str]) -> str:
        return json.dumps(value(match))[1:-1]

    words = []
    for word in shlex.split(line, comments=True):
        if nic and word.startswith("{"):
            # QEMU accepts single quotes in JSON, which saves the layout files from quoting quotes.
            device = json.loads(VARIABLE.sub(value_in_json, word.replace("'", '"'))) | dict(nic.properties)
            if nic.id:
                device["id"] = nic.id
            words.append(json.dumps(device))
        else:
            words.append(VARIABLE.sub(value, word))
    return words
