"""QEMU's arguments: layout files filled in, NUMA nodes, sizes."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import (
    GuestConfig,
    _numa_nodes,
    check_memories,
    parse_size,
    pci_addresses,
    qemu_arguments,
)
from nicmodel.vm.image import Image
from nicmodel.vm.layout import ACCELERATORS, FOLDER, LAYOUTS, PORTS, Accelerator, Nic, arguments, without_nics

IMAGE = Image(Path("/vmlinuz"), Path("/initrd"), "7.2")


def devices(words: list[str]) -> list[dict[str, object]]:
    return [json.loads(word) for word in words if word.startswith("{")]


def after(words: list[str], option: str) -> list[str]:
    return [words[n + 1] for n, word in enumerate(words) if word == option]


def test_every_file_is_a_layout() -> None:
    assert {*LAYOUTS.values(), *ACCELERATORS.values()} == {path.name for path in FOLDER.glob("*.args")}


@pytest.mark.parametrize(
    ("name", "accelerator"),
    [*((name, "") for name in LAYOUTS), ("q35", "accelerator.args"), ("switch", "pcie-switch-accelerator.args")],
)
def test_a_shell_reads_a_layout_file_as_we_do(name: str, accelerator: str) -> None:
    """*Steps*: start the command of the file's comment, with a QEMU that prints its arguments. *Verify*: same words."""
    path = FOLDER / (accelerator or LAYOUTS[name])
    settings = {"SOCKET": "/a b/nic", "SOCKET0": "/a", "SOCKET1": "/b", "KERNEL": "/vmlinuz", "INITRD": "/initrd"}
    names = ["qemu-configs/" + file for file in (LAYOUTS[name], accelerator) if file]
    script = f"eval $QEMU $(grep -{'h' * bool(accelerator)}v '^#' {' '.join(names)})"
    assert script in path.read_text()
    run = subprocess.run(
        ["sh", "-c", script],
        env={"QEMU": "printf '%s\\n'", "PATH": "/usr/bin:/bin", **settings},
        cwd=FOLDER.parent,
        capture_output=True,
    )
    nics = [Nic("/a"), Nic("/b")] if name == "two-nics" else [Nic("/a b/nic")]
    accelerators = [Accelerator("hbm", 128 << 20, "/dev/shm/hbm")] if accelerator else []
    ours = arguments(name, nics, {"KERNEL": "/vmlinuz", "INITRD": "/initrd"}, accelerators)
    ours = [word.replace(f"size={128 << 20},", "size=128M,") for word in ours]
    # A shell has one port, for its one NIC; ours has others.
    for number in [n for n, word in enumerate(ours) if re.search(r"id=port[1-9]", word) and name != "two-nics"][::-1]:
        del ours[number - 1 : number + 1]
    theirs = run.stdout.decode().splitlines()
    assert [json.loads(word.replace("'", '"')) if word[0] == "{" else word.strip() for word in theirs] == [
        json.loads(word) if word[0] == "{" else word.strip() for word in ours
    ]


def test_the_nics_line_is_there_once_for_each() -> None:
    found = devices(arguments("q35", [Nic("/x"), Nic("/y", id="other"), Nic("/z", properties={"addr": "9"})], {}))
    assert [device["socket"] for device in found] == [{"type": "unix", "path": path} for path in ("/x", "/y", "/z")]
    assert [device["id"] for device in found] == ["nic0", "other", "nic2"]
    assert [device.get("addr") for device in found] == [None, None, "9"]
    assert devices(arguments("q35", [], {})) == []


def test_each_nic_behind_the_switch_has_a_port() -> None:
    words = arguments("switch", [Nic("/x"), Nic("/y")], {})
    ports = [word for word in after(words, "-device") if word.startswith("xio3130")]
    assert len(ports) == PORTS
    assert [device["bus"] for device in devices(words)] == ["port0", "port1"]


@pytest.mark.parametrize("layout", ["q35", "switch"])
def test_machines_of_few_nics_are_the_same_without_them(layout: str) -> None:
    """So that one snapshot serves all of them; more NICs have more ports."""

    def machine(count: int) -> list[str]:
        words, nics = without_nics(arguments(layout, [Nic(f"/{number}") for number in range(count)], {}))
        assert [nic["socket"]["path"] for nic in nics] == [f"/{number}" for number in range(count)]
        assert [nic["bus"] for nic in nics] == [f"port{number}" for number in range(count)]
        return words

    assert all(machine(count) == machine(0) for count in range(PORTS + 1))
    assert machine(PORTS + 1) != machine(0)


def test_other_devices_in_json_are_no_nics() -> None:
    words = ["-device", '{"driver": "virtio-rng-pci"}', "-device", '{"driver": "vfio-user-pci", "id": "x"}', "-S"]
    assert without_nics(words) == (
        ["-device", '{"driver": "virtio-rng-pci"}', "-S"],
        [{"driver": "vfio-user-pci", "id": "x"}],
    )


def test_each_accelerator_behind_the_switch_has_a_port() -> None:
    words = arguments("switch", [Nic("/x")], {}, [Accelerator("hbm", 4096, "/a"), Accelerator("more", 8192, "/b")])
    assert [word for word in words if word.startswith("ivshmem")] == [
        "ivshmem-plain,id=hbm,memdev=hbm,master=on,bus=accelerator0",
        "ivshmem-plain,id=more,memdev=more,master=on,bus=accelerator1",
    ]
    assert [word for word in words if "accelerator" in word and word.startswith("xio3130")] == [
        "xio3130-downstream,id=accelerator0,bus=switch,chassis=3,slot=0",
        "xio3130-downstream,id=accelerator1,bus=switch,chassis=3,slot=1",
    ]
    assert "memory-backend-file,id=more,mem-path=/b,size=8192,share=on" in words


def test_where_a_device_is_in_the_guest() -> None:
    """From QEMU's answer to query-pci, devices behind bridges included."""

    def device(name: str, bus: int, slot: int, **more: object) -> dict[str, object]:
        return {"qdev_id": name, "bus": bus, "slot": slot, "function": 0, **more}

    behind = device("port", 1, 3, pci_bridge={"devices": [device("hbm", 2, 0)]})
    root = device("root", 0, 5, pci_bridge={"bus": {"number": 0}, "devices": [behind]})
    found = pci_addresses([{"bus": 0, "devices": [device("", 0, 0), root, device("empty", 0, 31, pci_bridge={})]}])
    assert found["hbm"] == "0000:02:00.0" and found["empty"] == "0000:00:1f.0"


@pytest.mark.parametrize("size", [0, 1000, 96 << 20])
def test_a_bar_has_a_size_of_a_power_of_two(size: int) -> None:
    with pytest.raises(VmError, match="a BAR's size is a power of two"):
        check_memories(GuestConfig(accelerators={"hbm": size}))


def test_memories_have_names_of_their_own() -> None:
    with pytest.raises(VmError, match="two memories are called 'hbm'"):
        check_memories(GuestConfig(accelerators={"hbm": 4096}, device_memory={"hbm": 2 << 20}))


def test_a_socket_path_may_hold_anything() -> None:
    path = '/tmp/it\'s "here" $HOME ${N}'
    assert devices(arguments("q35", [Nic(path)], {}))[0]["socket"] == {"type": "unix", "path": path}


@pytest.mark.parametrize("count", [0, 1])
def test_a_layout_with_too_few_nics(count: int) -> None:
    with pytest.raises(VmError, match=r"layout 'two-nics' wants 2 NICs"):
        arguments("two-nics", [Nic("/x")] * count, {})


def test_no_such_layout() -> None:
    with pytest.raises(VmError, match="no layout 'ring': say one of q35"):
        arguments("ring", [], {})


def test_variables_and_extra_arguments() -> None:
    config = GuestConfig(vcpus=3, memory="512M", cmdline="quiet nokaslr", arguments=("-device", "virtio-rng-pci"))
    words = qemu_arguments(config, IMAGE, "tcg", {})
    assert after(words, "-smp") == ["3"]
    assert after(words, "-m") == [f"{512 << 20}B"]
    assert after(words, "-append")[0].endswith(" quiet nokaslr")
    assert after(words, "-machine") == ["q35,memory-backend=ram"]
    assert words[-2:] == ["-device", "virtio-rng-pci"]
    assert _numa_nodes(config, {}) == []


def test_device_memory_makes_nodes_and_counts_as_memory() -> None:
    config = GuestConfig(memory=1 << 30, device_memory={"hbm": 64 << 20, "more": 32 << 20})
    words = qemu_arguments(config, IMAGE, "kvm", {}) + _numa_nodes(config, {"hbm": "backend-a", "more": "backend-b"})
    assert after(words, "-machine") == ["q35"]
    assert after(words, "-accel") == ["kvm,kernel-irqchip=split"]
    assert after(words, "-m")[-1] == f"{(1024 + 96) << 20}B"
    assert after(words, "-numa") == [
        "node,nodeid=0,cpus=0-1,memdev=ram",
        "node,nodeid=1,memdev=hbm",
        "node,nodeid=2,memdev=more",
    ]
    assert f"backend-a,id=hbm,size={64 << 20},share=on" in after(words, "-object")


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("64k", 65536), ("512M", 512 << 20), ("2G", 2 << 30), ("1GiB", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1", "2X", "2 GB x"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(VmError, match="is not a size"):
        parse_size(text)
