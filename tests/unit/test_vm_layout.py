"""QEMU's arguments: layout files filled in, NUMA nodes, sizes."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import GuestConfig, _numa_nodes, parse_size, qemu_arguments
from nicmodel.vm.image import Image
from nicmodel.vm.layout import FOLDER, LAYOUTS, Nic, arguments

IMAGE = Image(Path("/vmlinuz"), Path("/initrd"), "7.2")


def devices(words: list[str]) -> list[dict[str, object]]:
    return [json.loads(word) for word in words if word.startswith("{")]


def after(words: list[str], option: str) -> list[str]:
    return [words[n + 1] for n, word in enumerate(words) if word == option]


def test_every_file_is_a_layout() -> None:
    assert sorted(LAYOUTS.values()) == sorted(path.name for path in FOLDER.glob("*.args"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_shell_reads_a_layout_file_as_we_do(name: str) -> None:
    """*Steps*: start the command of the file's comment, with a QEMU that prints its arguments. *Verify*: same words."""
    path = FOLDER / LAYOUTS[name]
    settings = {"SOCKET": "/a b/nic", "SOCKET0": "/a", "SOCKET1": "/b", "KERNEL": "/vmlinuz", "INITRD": "/initrd"}
    script = f"""eval $QEMU $(grep -v '^#' {shlex.quote(str(path))})"""
    assert script.partition(" $(")[0] in path.read_text()
    run = subprocess.run(
        ["sh", "-c", script], env={"QEMU": "printf '%s\\n'", "PATH": "/usr/bin:/bin", **settings}, capture_output=True
    )
    nics = [Nic("/a"), Nic("/b")] if name == "two-nics" else [Nic("/a b/nic")]
    ours = arguments(name, nics, {"KERNEL": "/vmlinuz", "INITRD": "/initrd"})
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
    assert len(ports) == 2
    assert [device["bus"] for device in devices(words)] == ["port0", "port1"]


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
    words = qemu_arguments(config, IMAGE, "tcg")
    assert after(words, "-smp") == ["3"]
    assert after(words, "-m") == [f"{512 << 20}B"]
    assert after(words, "-append")[0].endswith(" quiet nokaslr")
    assert after(words, "-machine") == ["q35,memory-backend=ram"]
    assert words[-2:] == ["-device", "virtio-rng-pci"]
    assert _numa_nodes(config, {}) == []


def test_device_memory_makes_nodes_and_counts_as_memory() -> None:
    config = GuestConfig(memory=1 << 30, device_memory={"hbm": 64 << 20, "more": 32 << 20})
    words = qemu_arguments(config, IMAGE, "kvm") + _numa_nodes(config, {"hbm": "backend-a", "more": "backend-b"})
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
