"""The commands of the documentation, as a user types them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nicmodel.vm.qemu import spawn

pytestmark = pytest.mark.guest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (DOCS / "launch.md").read_text() + (DOCS / "devmem.md").read_text()
NICMODEL = Path(sys.executable).with_name("nicmodel")


def commands(name: str) -> list[list[str]]:
    """The indented lines of the pages that run ``nicmodel <name>``, as argument vectors."""
    return [shlex.split(line) for line in re.findall(rf"^ +(nicmodel {name}.*)$", PAGES, re.MULTILINE)]


@contextmanager
def network_namespace() -> Iterator[list[str]]:
    """Command prefix that runs in a network namespace of its own, as root; nothing otherwise."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("a tap needs root and iproute2")
    name = f"nicmodel-cli-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield ["ip", "netns", "exec", name]
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_demo() -> None:
    """The demo, with less data than `make demo`; its checks are its exit status."""
    run = subprocess.run([NICMODEL, "demo", "--size", "32M", "--queues", "3"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all checks held" in run.stdout
    assert "33,554,432 bytes, every byte checked" in run.stdout
    assert "0 bytes of that flow" in run.stdout
    assert "RX queue 2" in run.stdout
    assert re.search(r"rx2 +writes hbm +root complex +32\.0 MiB +32\.0 MiB", run.stdout)


@pytest.mark.long
def test_demo_of_an_idpf() -> None:
    words = ["demo", "--device", "idpf", "--size", "32M", "--queues", "3"]
    run = subprocess.run([NICMODEL, *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all checks held" in run.stdout
    assert "33,554,432 bytes, every byte checked" in run.stdout
    assert "the driver agrees" in run.stdout
    assert "RX queue 2" in run.stdout


def test_serve_and_vm(tmp_path: Path) -> None:
    serve, [shell, command, accelerator] = commands("serve")[0], commands("vm")
    assert shell == command[: len(shell)] == accelerator[: len(shell)]
    socket = str(tmp_path / "nic.sock")

    def here(words: list[str]) -> list[str]:
        return [str(NICMODEL), *(word.replace("/tmp/nic.sock", socket) for word in words[1:])]

    with (
        network_namespace() as prefix,
        spawn([*prefix, *here(serve)], stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            said = ""
            while "ready\n" not in said:
                line = server.stdout.readline()
                assert line, said
                said += line
            device = re.search(r"-device '(.*)'", said)
            assert device and device[1] == '{"driver":"vfio-user-pci","rombar":0,' + (
                f'"socket":{{"type":"unix","path":"{socket}"}}}}'
            )
            run = subprocess.run(here(command), capture_output=True, text=True, timeout=120)
            assert run.returncode == 0, run.stderr
            assert "driver: gve" in run.stdout
            command = [*here(accelerator), "--run", "ls /dev/bar_dmabuf"]
            run = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert run.returncode == 0, run.stderr
            assert re.fullmatch(r"0000:\w\w:00\.0\n", run.stdout)
        finally:
            server.terminate()
        assert server.wait(120) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serve"], "where is QEMU to connect"),
        (["serve", "--socket", "x", "--wire", "carrier-pigeon"], "names no wire"),
        (["serve", "--socket", "x", "--mac", "01:00:00:00:00:01"], "multicast"),
        (["serve", "--socket", "x", "--queues", "1000"], "queues"),
        (["serve", "--socket", "x", "--wire", "link"], "a link joins two NICs"),
        (["serve", "--socket", "/nonexistent/folder/x"], "/nonexistent/folder"),
        (["vm", "--nic", "/nonexistent/nic.sock", "--run", "true"], "/nonexistent/nic.sock"),
        (["no-such-command"], "there is no command"),
    ],
)
def test_wrong_words_get_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    run = subprocess.run([NICMODEL, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert run.returncode != 0
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.iterdir())


def test_a_socket_in_use(tmp_path: Path) -> None:
    socket = str(tmp_path / "nic.sock")
    with spawn([str(NICMODEL), "serve", "--socket", socket], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            for line in first.stdout:
                if line == "ready\n":
                    break
            run = subprocess.run([NICMODEL, "serve", "--socket", socket], capture_output=True, text=True, timeout=120)
            assert run.returncode == 1
            assert socket in run.stderr and "Traceback" not in run.stderr
        finally:
            first.terminate()
    assert not Path(socket).exists()
