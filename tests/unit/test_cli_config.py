"""`nicmodel config`: what it prints is what QEMU, libvirt and systemd take."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from nicmodel.cli.config import config
from nicmodel.vm.layout import ACCELERATORS, LAYOUTS
from nicmodel.vm.qemu import Qemu

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_ODD = """/tmp/it's a "socket" <&>\\.sock"""


@pytest.fixture(autouse=True)
def a_host_with_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QEMU", raising=False)
    monkeypatch.setattr("nicmodel.cli.config.system_qemu", lambda arch: Qemu((arch.qemu_program,), "11"))


def invoke(*words: str) -> Result:
    return CliRunner().invoke(config, words)


def printed(*words: str) -> str:
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    return result.output


def words_of(command: str) -> list[str]:
    return shlex.split(command.replace("\\\n", ""))


def words_line(name: str) -> str:
    """The command of a machine as one line."""
    return " ".join(words_of(printed(name)))


def test_the_list_names_every_configuration() -> None:
    names = {line.split()[0] for line in printed().splitlines() if line and not line[0].isspace()}
    assert {*LAYOUTS, "libvirt", "nicmodel@.socket", "nicmodel@.service"} <= names


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_machine_is_a_command_with_nothing_left_to_fill_in(name: str) -> None:
    accelerator = ["--accelerator", "hbm=16M"] if name in ACCELERATORS else []
    said = printed(name, "--memory", "4G", "--vcpus", "3", *accelerator, "--", "-drive", "file=a b")
    words = words_of(said)
    assert "$" not in said
    assert words[0] == ("qemu-system-aarch64" if name == "virt" else "qemu-system-x86_64")
    assert words[-2:] == ["-drive", "file=a b"] and "-kernel" not in words
    assert words[words.index("-m") + 1] == "4G" and words[words.index("-smp") + 1] == "3"
    backend = "memory-backend-file,id=hbm,mem-path=/dev/shm/hbm,size=16777216,share=on"
    assert (backend in words) == bool(accelerator)


def test_a_machine_of_another_architecture_has_no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: True)
    assert "-accel kvm " in words_line("q35") and "-accel tcg " in words_line("virt")


def test_a_kernel_is_booted_if_it_is_named() -> None:
    words = words_of(printed("q35", "--set", "KERNEL=/vmlinuz", "--set", "INITRD=/initrd", "--nic", _ODD))
    assert words[words.index("-kernel") + 1 :][:3] == ["/vmlinuz", "-initrd", "/initrd"]
    (device,) = [json.loads(word) for word in words if word.startswith("{")]
    assert device["socket"]["path"] == _ODD


def test_the_file_as_it_is() -> None:
    assert "${SOCKET}" in printed("q35", "--file")


def test_a_domain_of_libvirt_has_shared_memory_and_each_nic() -> None:
    root = ElementTree.fromstring(printed("libvirt", "--nic", "/a", "--nic", _ODD, "--memory", "1G"))
    assert root.findtext("memory") == str(1 << 30)
    memory = root.find("memoryBacking")
    assert memory is not None
    assert [(one.tag, one.attrib) for one in memory] == [("source", {"type": "memfd"}), ("access", {"mode": "shared"})]
    words = [one.attrib["value"] for one in root.iter(f"{_QEMU}arg")]
    assert words[::2] == ["-device", "-device"]
    devices = [json.loads(word) for word in words[1::2]]
    assert [device["socket"]["path"] for device in devices] == ["/a", _ODD]
    assert all(device["driver"] == "vfio-user-pci" and device["rombar"] == 0 for device in devices)


@pytest.mark.parametrize("words", [(), ("--nic", _ODD, "--set", "DISK=/a&b.qcow2", "--set", "NAME=one")])
def test_libvirt_accepts_its_domain(words: tuple[str, ...], tmp_path: Path) -> None:
    validate = shutil.which("virt-xml-validate")
    if validate is None:
        pytest.skip("no virt-xml-validate: apt install libvirt-clients libxml2-utils")
    file = tmp_path / "domain.xml"
    file.write_text(printed("libvirt", *words))
    run = subprocess.run([validate, str(file), "domain"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    file.write_text(file.read_text().replace("<vcpu>", "<vcpus>").replace("</vcpu>", "</vcpus>"))
    assert subprocess.run([validate, str(file), "domain"], capture_output=True, timeout=60).returncode != 0


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze: apt install systemd")
    for kind in ("socket", "service"):
        (tmp_path / f"nicmodel@tap0.{kind}").write_text(printed(f"nicmodel@.{kind}"))
    units = [str(tmp_path / f"nicmodel@tap0.{kind}") for kind in ("socket", "service")]
    run = subprocess.run([analyze, "verify", *units], capture_output=True, text=True, timeout=60)
    assert "nicmodel" not in run.stderr, run.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["q34"], "there is no configuration 'q34'"),
        (["q35", "--set", "NOTHING=1"], "q35 has no variable 'NOTHING'"),
        (["q35", "--set", "CPU"], "not of the form VARIABLE=VALUE"),
        (["q35", "--vcpus", "0"], "not in the range"),
        (["libvirt", "--accelerator", "a=1M"], "are for machines"),
    ],
)
def test_what_is_refused(words: list[str], complaint: str) -> None:
    result = invoke(*words)
    assert result.exit_code == 2 and complaint in result.output


def test_a_host_without_such_a_qemu_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian 13's QEMU, 10.0, has no vfio-user-pci."""
    monkeypatch.setattr("nicmodel.cli.config.system_qemu", lambda arch: None)
    result = invoke("q35")
    assert result.exit_code == 0
    assert "trixie-backports" in result.output and "nicmodel vm --prepare" in result.output
    monkeypatch.setenv("QEMU", "env A=1 /opt/qemu")
    assert invoke("q35").output.startswith("env A=1 /opt/qemu")
