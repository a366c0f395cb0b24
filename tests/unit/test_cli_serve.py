"""Every `nicmodel serve` of the README and the documentation runs as printed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespace import own_namespace
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from nicmodel.vm.namespace import Namespace

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMMANDS = list(
    dict.fromkeys(
        command for page in PAGES for command in re.findall(r"^ +nicmodel (serve .*)$", page.read_text(), re.MULTILINE)
    )
)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("no /dev/net/tun")
    yield from own_namespace()


@pytest.mark.parametrize("command", COMMANDS)
def test_example(command: str, namespace: Namespace, tmp_path: Path) -> None:
    """Steps: start it in a namespace with a veth pair and a capture; wait until it is ready; end it.
    Verify: it names its wires, ends cleanly, and leaves no socket behind.
    """
    namespace.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    words = shlex.split(command.replace("/tmp/", f"{tmp_path}/"))
    wrpcap(str(tmp_path / "traffic.pcap"), Ether() / IP() / UDP())
    before = set(tmp_path.iterdir())
    server = namespace.run(
        subprocess.Popen[str], [sys.executable, "-m", "nicmodel.cli", *words], stdout=subprocess.PIPE, text=True,
        cwd=tmp_path,
    )  # fmt: skip
    said = ""
    with server:
        assert server.stdout is not None
        try:
            for line in server.stdout:
                said += line
                if line == "ready\n":
                    break
            assert said.endswith("ready\n")
            assert server.poll() is None
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    kinds = [words[number + 1].partition(":")[0] for number, word in enumerate(words) if word == "--wire"] or ["none"]
    assert re.findall(r"^nic\d: .*, wire (\w+)", said, re.MULTILINE) == kinds * (words.count("--socket") // len(kinds))
    assert not [path for path in set(tmp_path.iterdir()) - before if path.is_socket()]
