"""Instructions of the packet path for each frame: a figure that a busy machine does not blur.

    python benchmarks/instructions.py
    python benchmarks/instructions.py --length 64
    python benchmarks/instructions.py --device idpf

The packet path runs under valgrind, which counts the instructions of a number of batches and of twice as many: the
difference is that of the batches alone. What is counted is `Ingress.deliver`, the interpreter's share included, on its
way from the wire's batch to buffers and completions; the driver does nothing meanwhile. Valgrind knows no AVX-512, so
the code is compiled for a processor without: one that is named, and the same everywhere.

"perf stat" would count faster, but virtual machines seldom let it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from packet_path import LENGTHS, LONGEST, MAC, Case, label, make_batches, open_nic
from plot import Plot, Series
from report import output_option, write

from nicmodel.client.results import Column
from nicmodel.idpf.profile import Profile as IdpfProfile
from nicmodel.idpf.testing.nic import TestNic as IdpfNic
from nicmodel.nic.ingress import Ingress
from nicmodel.packet.frames import Batch
from nicmodel.testing.clock import VirtualClock
from nicmodel.vm.errors import VmError
from nicmodel.vm.packages import Packages, obtain

VALGRIND = Packages("valgrind", ("valgrind",), suite="trixie", keep="valgrind|libc6$|libgcc-s1")
#: What the code is compiled for: AVX2, no AVX-512.
PROCESSOR = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx2,+bmi,+bmi2,+fma,+popcnt"}
#: Batches of the first count. Twice as many fit into the ring of buffers.
BATCHES = 3
CASES = (
    *(Case(length, split) for length in LENGTHS for split in (False, True)),
    Case(64, flows=10_000),
    Case(64, rules=1000),
    Case(64, flows=10_000, rules=1000),
)

# Client requests (valgrind/valgrind.h, valgrind/callgrind.h): the tool's two letters, then its own number.
_CALLGRIND = ord("C") << 24 | ord("T") << 16
_DUMP_STATS, _ZERO_STATS = _CALLGRIND, _CALLGRIND + 1
_START, _STOP = _CALLGRIND + 4, _CALLGRIND + 5
# mov rax, rdi; xor edx, edx; then what valgrind looks for, and what does nothing elsewhere: rol rdi by 3, 13, 61, 51;
# xchg rbx, rbx. The result is in rdx. rbx is left alone, rdi and rax need not be kept.
_REQUEST = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")


class Callgrind:
    """Talks to valgrind, from inside."""

    def __init__(self) -> None:
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(_REQUEST)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)

    def request(self, number: int) -> None:
        """Make a request without arguments."""
        words = ctypes.create_string_buffer(struct.pack("<6Q", number, 0, 0, 0, 0, 0))
        self._call(ctypes.addressof(words))


PLOT = Plot(
    series=(Series("count", "instructions"),),
    label=label,
    note=lambda row: "",
    unit=lambda row: "instructions",
    style=",.0f",
)


@click.command()
@click.option("--device", type=click.Choice(["gvnic", "idpf"]), default="gvnic", show_default=True,
              help="The kind of NIC; the cases with flows and rules are gVNIC's.")  # fmt: skip
@click.option("--length", "lengths", type=click.Choice(list(map(str, LENGTHS))), multiple=True,
              help="Length of frames, again and again.")  # fmt: skip
@output_option
@click.option("--inside", is_flag=True, hidden=True)
def main(device: str, lengths: tuple[str, ...], output: Path, inside: bool) -> None:
    """Measure, print a table and write it to benchmarks/results."""
    chosen = [case for case in CASES if not lengths or str(case.length) in lengths]
    if device == "idpf":
        # Aggregates come in more buffers than the two batches' worth that there are.
        chosen = [case for case in chosen if case.flows == 1 and not case.rules and case.length <= LONGEST]
    if inside:
        for case in chosen:
            count(open_idpf(case) if device == "idpf" else open_gvnic(case), make_batches(case))
        return
    arguments = ["--device", device, *(word for length in lengths for word in ("--length", length))]
    counts = run(arguments, len(chosen))
    rows = []
    for case, (once, twice) in zip(chosen, counts, strict=True):
        frames = make_batches(case)[0].count * BATCHES
        rows.append({**asdict(case), "split_text": "on" if case.split else "off", "count": (twice - once) / frames})
    columns = (
        Column("length", "bytes", ","), Column("split_text", "header split"), Column("flows", "flows", ","),
        Column("rules", "rules", ","), Column("count", "instructions for each frame", ",.0f"),
    )  # fmt: skip
    title = f"Packet path{' of idpf' if device == 'idpf' else ''}, receive: instructions for each frame"
    write("instructions" if device == "gvnic" else f"instructions_{device}", title, columns, rows, PLOT, output)


def find_valgrind() -> tuple[list[str], dict[str, str]]:
    """The system's valgrind or else Debian's: how to call it, and variables that it needs."""
    if system := shutil.which("valgrind"):
        return [system], {}
    try:
        tree = obtain(VALGRIND)
    except VmError as error:
        raise click.ClickException(str(error)) from None
    return tree.command("usr/bin/valgrind.bin"), {"VALGRIND_LIB": str(tree.path / "usr/libexec/valgrind")}


def run(arguments: list[str], cases: int) -> list[tuple[int, int]]:
    """Instructions of `BATCHES` batches and of twice as many, for each case."""
    valgrind, environment = find_valgrind()
    environment |= os.environ | PROCESSOR
    program = [sys.executable, __file__, "--inside", *arguments]
    # Outside of valgrind first: that compiles whatever is not in the cache.
    subprocess.run(program, check=True, env=environment)
    with tempfile.TemporaryDirectory() as folder:
        options = ("--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out", "-q")
        # JIT-compiled code lies in memory that was data before.
        subprocess.run([*valgrind, *options, "--smc-check=all-non-file", *program], check=True, env=environment)
        files = [Path(folder, f"out.{number}") for number in range(1, 2 * cases + 1)]
        totals = [int(re.findall(r"^(?:summary|totals): (\d+)", file.read_text(), re.MULTILINE)[-1]) for file in files]
    return list(zip(totals[::2], totals[1::2], strict=True))


#: A NIC that is set up, and what has its driver take all that came and post the buffers again.
Bench = tuple[Ingress[Any], Callable[[], object]]


@contextmanager
def open_gvnic(case: Case) -> Iterator[Bench]:
    """A gVNIC and its driver, set up for a case."""
    with open_nic(case) as (bench, doorbells):

        def renew() -> None:
            bench.driver.rx[0].discard()
            doorbells.pass_on()
            bench.nic.work()

        yield bench.nic.ingress, renew


@contextmanager
def open_idpf(case: Case) -> Iterator[Bench]:
    """An idpf and its driver, likewise."""
    with IdpfNic(IdpfProfile(mac=MAC, max_mtu=9216), clock=VirtualClock()) as nic, nic.connect() as driver:
        driver.probe()
        driver.open(queues=1, ring_entries=6144, header_split=case.split)

        def renew() -> None:
            driver.poll(0)
            driver.identify()  # a message: all doorbells before it have been read

        yield nic.device.ingress, renew
        assert nic.device.state.drops.sum() == 0


def count(opened: AbstractContextManager[Bench], batches: list[Batch]) -> None:
    """Inside valgrind: deliver batches, and dump the instructions of them twice."""
    callgrind = Callgrind()
    with opened as (ingress, renew):
        # The first batches load and set up things, and warm up the interpreter.
        for batch in (batches * 2 * BATCHES)[: 2 * BATCHES]:
            ingress.deliver(batch)
            renew()
        callgrind.request(_START)
        for number in (BATCHES, 2 * BATCHES):
            callgrind.request(_ZERO_STATS)
            for turn in range(number):
                ingress.deliver(batches[turn % len(batches)])
            callgrind.request(_DUMP_STATS)
            callgrind.request(_STOP)
            renew()
            callgrind.request(_START)
        callgrind.request(_STOP)


if __name__ == "__main__":
    main()
