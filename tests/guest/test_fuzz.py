"""A driver is fuzzed through its device: one with a fault that was put into it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from lab import wait_until

from nicmodel.faults.scenario import Frame, Scenario
from nicmodel.gvnic.faults.kinds import KINDS
from nicmodel.vm.fuzz.inputs import PING
from nicmodel.vm.fuzz.target import Target
from nicmodel.vm.kernel import default_kernel

pytestmark = pytest.mark.guest

#: Only a completion of a rare type leads here.
FUNCTION = "gve_handle_miss_completion"
#: What follows a module that is signed (Linux, scripts/sign-file.c): the signature, whose length ends what is before
#: these words. A module that was changed is loaded without one only.
MAGIC = b"~Module signature appended~\n"
#: The first byte of a call, here of what ftrace has at the beginning of each function.
CALL = 0xE8
#: An instruction that there is not, as the kernel's BUG() is.
UD2 = b"\x0f\x0b"


def broken() -> bytes:
    """The stock gve, which dies in `FUNCTION`, behind the bytes at its beginning that are the kernel's to change."""
    content = bytearray(default_kernel().find().modules["gve"].content())
    if content.endswith(MAGIC):
        end = len(content) - len(MAGIC)
        del content[end - 12 - int.from_bytes(content[end - 4 : end], "big") :]
    elf = ELFFile(io.BytesIO(content))
    [symbol] = elf.get_section_by_name(".symtab").get_symbol_by_name(FUNCTION)
    at = elf.get_section(symbol["st_shndx"])["sh_offset"] + symbol["st_value"]
    at += 5 if content[at] == CALL else 9  # without endbr64, or with it
    content[at : at + len(UD2)] = UD2
    return bytes(content)


def nicmodel(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nicmodel.cli", "driver", "fuzz", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_a_fault_is_found_and_made_small(tmp_path: Path) -> None:
    """*Verify*: of some hundred inputs little is left, the fault among it; the scenario plays by itself."""
    module, corpus = tmp_path / "gve.ko", tmp_path / "corpus"
    module.write_bytes(broken())
    run = nicmodel("--module", module, "--corpus", corpus, "--inputs", "completions", "--seconds", "120",
                   "--findings", "1", "--tries", "8", "--seed", "5")  # fmt: skip
    assert run.returncode == 3, run.stdout + run.stderr
    assert re.search(rf"✗ .* in {FUNCTION}\b", run.stdout), run.stdout
    [folder] = (corpus / "findings").iterdir()
    assert FUNCTION in (folder / "dmesg").read_text()
    scenario = Scenario.load(folder / "scenario.toml", KINDS)
    assert {"tx-miss", "tx-field"} & {fault.name for _, fault in scenario.faults}
    # Of some hundred inputs with up to twelve each; how few depends on how soon the guest's end is noticed.
    assert len(scenario.faults) + len(scenario.frames) <= 40
    kept = int(re.search(r"(\d+) inputs kept", run.stdout)[1])  # type: ignore[index]
    assert kept == len(list((corpus / "completions").glob("*.toml"))) > 1
    again = nicmodel("--module", module, "--replay", folder / "scenario.toml")
    assert again.returncode == 3 and FUNCTION in again.stdout, again.stdout + again.stderr


@pytest.mark.parametrize("device", ["gvnic", "idpf"])
def test_programs_take_packets_before_the_kernel_does(device: str) -> None:
    """*Verify*: what XDP sends back leaves by queues of its own, behind those of the stack; and that it ends."""
    queues, frames = 2, 5
    with Target(default_kernel(), ["--device", device], [], True, Path(), None) as target:
        target.start()

        def sent_by_xdp() -> int:
            [nic] = target.counters()
            return sum(int(queue["packets"]) for queue in nic["tx_queues"][queues:])

        target.run("xdp_settings")
        assert target.run("xdp 20 xdp_program tx") == 0
        before = sent_by_xdp()
        target.begin(Scenario(0, (), frames=(Frame(target.frames[PING]),) * frames))
        wait_until(lambda: sent_by_xdp() == before + frames)
        assert target.run("no_xdp; ip link show $NETIF | grep xdp") == 1
        assert target.answers(10) and sent_by_xdp() == before + frames
        assert target.found() == []
