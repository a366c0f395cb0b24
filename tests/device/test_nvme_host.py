"""A host of NVMe/TCP on the driver in Python, against a controller in Python, in virtual time; and the experiment."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click.testing
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from nicmodel.cli.experiment import nvme, plot, questions, series
from nicmodel.cli.experiment import show as shown
from nicmodel.cli.experiment.everything import SHORT
from nicmodel.cli.main import cli
from nicmodel.client import results
from nicmodel.gvnic.experiments import ddp
from nicmodel.gvnic.experiments.ddp import DDP, ORDINARY, SPLIT, Bench, Case, Network, Parameters
from nicmodel.gvnic.options.ddp.declarations import DdpDigest
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.nvme_host import BLOCK, Queue
from nicmodel.gvnic.testing.nvme_tcp import NvmeError, Reader, data_pdu, response, with_digest
from nicmodel.gvnic.testing.pieces import Piece
from nicmodel.gvnic.testing.violation import ContractViolation
from nicmodel.testing.tcp import TcpError
from nicmodel.testing.tcp_stream import TcpStream
from nicmodel.vm.errors import VmError

from .frames import NIC_MAC
from .nvme_target import PythonTarget, bench_with

PARAMETERS = SHORT[3]
CALM = Network()
BOTH = int(DdpDigest.HEADER | DdpDigest.DATA)


@pytest.fixture(scope="module")
def measured() -> list[dict[str, Any]]:
    """The experiment in short, against a controller that answers in several PDUs."""
    with ExitStack() as stack:
        bench = bench_with(stack, PythonTarget(pdu=50 << 10))
        return [row for case in ddp.cases(PARAMETERS) for row in ddp.measure(PARAMETERS, bench, case)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield bench_with(stack, PythonTarget())


@pytest.fixture
def opened(bench: Bench) -> Bench:
    """With queues."""
    bench.driver.open(rx_queues=1, tx_queues=1, ring_entries=1024, buffer_size=4096, header_split=True)
    return bench


def target_of(bench: Bench) -> PythonTarget:
    assert isinstance(bench.target, PythonTarget)
    return bench.target


def small(bench: Bench, way: str = DDP, network: Network = CALM, digests: bool = False, **parameters: Any) -> Any:
    """Few commands: the row of one case."""
    wanted = Parameters(depths=(4,), commands=parameters.pop("commands", 10), **parameters)
    [row] = ddp.measure(wanted, bench, Case(way, network, digests))
    return row


def failed(result: results.Result) -> list[str]:
    return [f"{claim.claim} ({claim.evidence})" for claim in result.claims if not claim.holds]


# The experiment


def test_experiment(measured: list[dict[str, Any]]) -> None:
    """All claims hold, every byte is accounted for, and what TCP had to repair is what the wire did."""
    result = ddp.conclude(PARAMETERS, measured, {})
    assert failed(result) == [] and len(result.claims) == 7
    for row in measured:
        assert row["placed"] + row["copied"] == row["read_bytes"] > 0 < row["written_bytes"]
        repaired = row["tcp"]["out_of_order"] + row["tcp"]["again"]
        assert (repaired > 0) == bool(row["loss"] or row["reorder"])
        assert (row["placed"] > 0) == (row["way"] == DDP)
    assert [row["network"] for row in result.tables[1].rows] == ["undisturbed", "loss 2 %", "reorder 5 %"]
    assert all(value is None or 0 <= value <= 100 for panel in result.panels for values in panel.series.values()
               for value in values)  # fmt: skip


@pytest.mark.parametrize(
    ("number", "change", "claim"),
    [
        (0, {"wrong_bytes": 1}, 0), (5, {"stray_bytes": 1}, 0), (4, {"failed": 1}, 0), (3, {"wrong_blocks": 1}, 1),
        (2, {"exchangeable": 4096}, 2), (0, {"copied": 5}, 2), (4, {"placed_percent": 98.0}, 4),
        (11, {"placed_percent": 40.0}, 5), (4, {"ledger_bytes": 1}, 3), (0, {"ledger_bytes": 1}, 3),
        (5, {"wrong_digests": 1}, 6), (4, {"checked": 1}, 6),
    ],
)  # fmt: skip
def test_what_does_not_hold(measured: list[dict[str, Any]], number: int, change: dict[str, Any], claim: int) -> None:
    rows = [row | change if at == number else row for at, row in enumerate(measured)]
    claims = ddp.conclude(PARAMETERS, rows, {}).claims
    assert [at for at, one in enumerate(claims) if not one.holds] == [claim]


def test_a_nic_that_never_finds_its_way(measured: list[dict[str, Any]]) -> None:
    for confirmed, verdict in ((3, []), (0, [6])):
        change = {"requests": 5, "confirmed": confirmed, "refused": 1, "lost": 5}
        rows = [
            row | {"device": row["device"] | (change if row["reorder"] else {"requests": 0, "confirmed": 0})}
            for row in measured
        ]
        claims = ddp.conclude(PARAMETERS, rows, {}).claims
        assert len(claims) == 8 and [at for at, one in enumerate(claims) if not one.holds] == verdict


@pytest.mark.parametrize("way", [ORDINARY, SPLIT, DDP])
@pytest.mark.parametrize("digests", [False, True])
def test_a_wrong_byte_of_a_read_is_noticed(bench: Bench, way: str, digests: bool) -> None:
    """The controller sends one byte of each block wrong, with a digest that holds: so many wrong bytes are seen."""
    target_of(bench).spoil = set(range(77, len(bench.disk), BLOCK))
    row = small(bench, way, digests=digests)
    assert row["wrong_bytes"] == row["read_bytes"] // BLOCK and row["wrong_digests"] == row["wrong_blocks"] == 0


@pytest.mark.parametrize("change", [lambda disk: disk.__setitem__(123, disk[123] ^ 1), lambda disk: disk.reverse()])
def test_a_wrong_byte_in_the_targets_file_is_noticed(bench: Bench, change: Callable[[bytearray], None]) -> None:
    row = small(bench)
    assert row["wrong_blocks"] == bench.wrong_blocks == 0
    change(target_of(bench).disk)
    assert bench.wrong_blocks > 0
    assert small(bench)["wrong_blocks"] > 0


@pytest.mark.parametrize("digests", [False, True])
def test_a_nic_that_places_wrong_bytes_is_noticed(bench: Bench, digests: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had: one bit of what it has just placed flips. A digest that it vouches for does not hold then."""
    take, flips = Reader._take_data, iter([True])

    def spoiled(self: Reader, piece: Piece) -> None:
        take(self, piece)
        if piece.data is None and next(flips, False):
            address, _ = self.reads[piece.command].pieces[piece.offset // BLOCK]
            bench.memory.view(address + piece.offset % BLOCK, 1)[:] ^= 1

    monkeypatch.setattr(Reader, "_take_data", spoiled)
    if digests:
        with pytest.raises(ContractViolation, match="vouches for a wrong digest"):
            small(bench, digests=True)
    else:
        assert small(bench)["wrong_bytes"] == 1


def test_a_nic_that_writes_beside_a_buffer_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    take, done = Reader._take_data, iter([True])

    def spoiled(self: Reader, piece: Piece) -> None:
        take(self, piece)
        read = self.reads[int(self._data["command"])]
        if read.pieces[0][0] in bench.memory and read.length == BLOCK and next(done, False):
            bench.memory.view(read.pieces[0][0] - 1, 1)[:] = 0
            bench.memory.view(read.pieces[0][0] + BLOCK, 1)[:] = 0

    monkeypatch.setattr(Reader, "_take_data", spoiled)
    assert small(bench)["stray_bytes"] == 2


def test_commands_that_fail_are_counted(bench: Bench) -> None:
    target_of(bench).status = 0x4002
    row = small(bench)
    assert row["failed"] == 13 and row["wrong_bytes"] > 0 == row["placed"]


def test_silly_parameters() -> None:
    for depth in (0, 127):
        with pytest.raises(ValueError, match="under way"):
            Parameters(depths=(depth,))
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="probabilities"):
            Parameters(losses=(share,))
    assert Parameters(losses=(0, 0), reorders=(0, 0.1)).networks == [Network(), Network(reorder=0.1)]


# The command


def call(*words: str) -> click.testing.Result:
    return CliRunner().invoke(cli, ["experiment", *words], env={"COLUMNS": "100"}, standalone_mode=False)


@pytest.fixture
def a_target_in_python(monkeypatch: pytest.MonkeyPatch) -> PythonTarget:
    """The command has it instead of a guest's."""
    target = PythonTarget()
    monkeypatch.setattr(nvme, "set_up", lambda stack, kernel: bench_with(stack, target))
    return target


def test_command(a_target_in_python: PythonTarget, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Question, tables that fit 100 columns, verdicts, and the same as JSON and Markdown; exit status 0."""
    as_json, markdown = tmp_path / "result.json", tmp_path / "result.md"
    ran = call("ddp", "--loss=0", "--reorder=5", "--depth=4", "--commands=8", "--json", str(as_json),
               "--markdown", str(markdown))  # fmt: skip
    assert ran.exception is None, ran.output
    found = json.loads(as_json.read_text())
    assert found["experiment"] == "ddp" and found["holds"] and len(found["tables"][0]["rows"]) == 4
    assert {"ordinary", "split", "placed", "copied", "device", "tcp"} <= set(found["tables"][0]["rows"][0])
    text = ran.output + capsys.readouterr().out
    assert found["question"] in " ".join(text.split()) and "✗" not in text
    assert sum(line.startswith("- ✓") for line in markdown.read_text().splitlines()) == len(found["claims"])


def test_tables_fit(measured: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=100)
    monkeypatch.setattr(shown, "console", console)
    with console.capture() as captured:
        shown.show(ddp.conclude(PARAMETERS, measured, {}))
    text = captured.get()
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text


def test_exit_status(a_target_in_python: PythonTarget) -> None:
    """What did not hold is said, and is an error; so is a target that is wrong from the beginning, or is none."""
    words = ["ddp", "--loss=0", "--reorder=0", "--depth=4", "--commands=8", "--digests=none"]
    a_target_in_python.spoil = set(range(0, a_target_in_python.size, BLOCK))
    ran = call(*words)
    assert isinstance(ran.exception, VmError)
    assert "Each byte that was read is what the target has" in str(ran.exception)
    a_target_in_python.__post_init__()
    a_target_in_python.disk[5] ^= 1
    ran = call(*words)
    assert isinstance(ran.exception, VmError) and "not what it was told to be" in str(ran.exception)
    a_target_in_python.disk[5] ^= 1
    a_target_in_python.sessions.clear()
    a_target_in_python._execute = lambda session, entry, data: b"nonsense" * 10  # type: ignore[method-assign]
    ran = call(*words)
    assert isinstance(ran.exception, VmError)
    assert str(ran.exception).startswith("ordinary receive, undisturbed, no digests: no PDU of a controller begins")
    assert isinstance(call("ddp", "--loss=nan").exception, click.UsageError)


def test_it_is_among_all(
    a_target_in_python: PythonTarget, measured: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``experiment all`` has it, with its plot on the page, unless there is to be no guest."""
    pytest.importorskip("matplotlib")
    other = results.Result("other", "", "", "", {}, claims=[results.Claim("", True, "")])
    other.panels = [results.Panel("", "", ["a"], {"b": [1.0]})]
    monkeypatch.setattr(series, "run_devmem", lambda *arguments: None)
    monkeypatch.setattr(series, "as_result", lambda found: other)
    monkeypatch.setattr(series, "draw", lambda found, plotting: plot.draw(other, plotting))
    for name in ("run_placement", "run_owners", "run_exit"):
        monkeypatch.setattr(questions, name, lambda *arguments, **keywords: other)
    by_case = {(row["way"], row["network"]): [] for row in measured}  # type: ignore[var-annotated]
    for row in measured:
        by_case[row["way"], row["network"]].append(row)
    monkeypatch.setattr(ddp, "measure", lambda parameters, bench, case: by_case[case.way, case.network.name])
    page, as_json = tmp_path / "all.html", tmp_path / "all.json"
    ran = call("all", "--short", "--html", str(page), "--json", str(as_json))
    assert ran.exception is None, ran.output
    assert [one["experiment"] for one in json.loads(as_json.read_text())] == ["other", "ddp"] + ["other"] * 3
    assert 'id="ddp"' in page.read_text() and page.read_text().count("<img ") == 5


# The host


def queue_of(bench: Bench, **options: Any) -> Queue:
    return Queue(bench.station, bench.target.address, bench.target.port, **options)


def test_life_of_a_controller(opened: Bench) -> None:
    """Connect, enable, read, write, end; the controller has seen the same, and the NIC has forgotten the flow."""
    memory = opened.memory
    with queue_of(opened, digests=BOTH) as admin, queue_of(opened, digests=BOTH, flow=0, memory=memory) as queue:
        controller = admin.connect(opened.target.subsystem)
        admin.enable()
        queue.connect(opened.target.subsystem, queue=1, controller=controller)
        place = memory.allocate(32 * BLOCK)
        queue.start_write(7, 3, b"w" * 40 * BLOCK)
        queue.finish()
        assert queue.written == 40 * BLOCK and target_of(opened).disk[3 * BLOCK : 43 * BLOCK] == b"w" * 40 * BLOCK
        queue.start_read(8, 2, 2, [(place, 2 * BLOCK)])
        assert queue.under_way == 1
        queue.finish()
        assert queue.done[8].data == bytes(opened.disk[2 * BLOCK : 3 * BLOCK]) + b"w" * BLOCK
        assert queue.placed > 2 * BLOCK - 32 and queue.under_way == 0 and queue.failed == []
    assert target_of(opened).connects == [(0, 0xFFFF), (1, 5)]
    ends = [session.connection for session in target_of(opened).sessions.values()]
    opened.station.run(lambda: all(end.closed and not end.error for end in ends), 1, "a connection did not end")
    assert not opened.report()["ddp"]["bad_headers"] and opened.report()["dma_faults"] == 0


def test_nobody_is_there(opened: Bench) -> None:
    """No such station, nobody at the port's connection, and a controller that says nothing: each wait ends."""
    with pytest.raises(TimeoutError, match=r"nobody has the address 10\.4\.0\.9"):
        opened.station.connect("10.4.0.9", 4420, timeout=2)
    target = target_of(opened)
    target.take = lambda frame, now: []  # type: ignore[method-assign]
    opened.station._neighbours[bytes([10, 4, 0, 2])] = bytes.fromhex("020000000002")
    with pytest.raises((TimeoutError, TcpError), match="does not answer"):
        queue_of(opened)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"\1\0\x80\0\x80\0\0\0" + bytes(3) + b"\3" + bytes(116), "no answer to digests 0"),
        (b"\3\0\x18\0" + bytes(124), "no answer to digests 0"),
        (bytes(130), "no answer"),
    ],
)
def test_no_controller(opened: Bench, answer: bytes, complaint: str) -> None:
    target_of(opened)._answer = lambda session, pdu: answer  # type: ignore[method-assign]
    with pytest.raises(NvmeError, match=complaint):
        queue_of(opened)


def test_a_controller_that_goes(opened: Bench) -> None:
    """It ends the connection in order, and with a reset."""
    target = target_of(opened)
    for end, error in (("close", NvmeError), ("abort", TcpError)):
        queue = queue_of(opened)
        session = list(target.sessions.values())[-1]
        target._execute = lambda *arguments, end=end, session=session: getattr(session.connection, end)() or b""  # type: ignore[method-assign]
        with pytest.raises(error, match=r"closed the connection|reset"):
            queue.connect(target.subsystem)
        queue.close()


def test_a_refusal(opened: Bench) -> None:
    target_of(opened)._execute = lambda session, entry, data: response(0xFFF0, status=0x182)  # type: ignore[method-assign]
    with queue_of(opened) as queue, pytest.raises(NvmeError, match="refuses fabrics command 0x1: status 0x182"):
        queue.connect("somebody")


def ready(command: int, start: int, count: int, digests: int = 0) -> bytes:
    header = struct.pack("<BBBBI", 9, digests & 1, 24, 0, 24 + 4 * (digests & 1))
    return with_digest(header + struct.pack("<HHIII", command, 1, start, count, 0), digests)


#: What no controller may send to a host that reads 4096 bytes as command 7 and writes 8192 as command 8.
IMPOSSIBLE = {
    "a PDU of the host's": bytes([4, 0, 72, 0, 72, 0, 0, 0]) + bytes(64),
    "another header length": bytes([7, 0, 20, 24, 32, 0, 0, 0]) + bytes(24),
    "an endless PDU": bytes([7, 0, 24, 24]) + (1 << 25).to_bytes(4, "little") + bytes(16),
    "a header digest that does not hold": bytearray(data_pdu(7, b"x" * 64, digests=1)[:24] + bytes(4)),
    "data for nobody": data_pdu(9, b"x" * 64),
    "data beyond the end": data_pdu(7, b"x" * 64, offset=4090),
    "lengths that contradict": data_pdu(7, b"x" * 64).replace(struct.pack("<I", 88), struct.pack("<I", 99)),
    "data that is asked for twice": ready(9, 0, 64),
    "more data than there is": ready(8, 8190, 64),
    "no data": ready(8, 0, 0),
    "data that it has had": ready(8, 0, 4096) + ready(8, 0, 4096),
    "an answer to nothing": response(9),
    "the end": bytes([3, 0, 24, 0, 48, 0, 0, 0, 1, 0]) + bytes(38),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_no_controller_sends(opened: Bench, name: str) -> None:
    digests = 1 if "digest" in name else 0
    queue = queue_of(opened, digests=digests)
    queue.read(7, 4096)
    queue.writes[8] = bytes(8192)
    with pytest.raises(NvmeError):
        queue.follow([Piece(queue.next, len(IMPOSSIBLE[name]), bytes(IMPOSSIBLE[name]))])
    assert queue.written in (0, 4096) and queue.done == {}


@given(st.binary(max_size=200), st.sampled_from([3, 5, 7, 9]), st.integers(0, 3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused_or_taken(lab: Loopback, data: bytes, kind: int, digests: int) -> None:
    """A reader takes any bytes or says `NvmeError`, and writes nowhere but to its buffers."""
    reader = Reader(
        lab.driver, None, source="192.0.2.1", destination="192.0.2.2", source_port=1, destination_port=2,
        digests=digests,
    )  # fmt: skip
    read = reader.read(7, 64)
    stream = bytes([kind, digests, 24, 24]) + data
    try:
        for place in range(0, len(stream), 50):
            part = stream[place : place + 50]
            reader.follow([Piece(reader.next, len(part), part)])
    except NvmeError:
        pass
    assert not lab.ram.view(read.pieces[0][0] + 64, 4000).any()
    lab.ram.free(read.pieces[0][0])


# The station


def test_the_station_answers_arp(opened: Bench) -> None:
    """Who asks for its address gets it, who asks for another does not; anything else is nothing to it."""
    target = target_of(opened)
    seen: list[bytes] = []
    target.take = lambda frame, now: seen.append(frame) or []  # type: ignore[method-assign, func-returns-value]
    wire = opened_wire(opened)
    asker, own = bytes.fromhex("020000000009"), bytes([10, 4, 0, 1])

    def ask(address: bytes) -> bytes:
        fixed = bytes.fromhex("0806000108000604 0001".replace(" ", ""))
        return b"\xff" * 6 + asker + fixed + asker + bytes([10, 4, 0, 9]) + bytes(6) + address

    for frame in (ask(bytes([10, 4, 0, 8])), ask(own)[:40], bytes(12) + b"\x08\x00" + bytes(46), ask(own)):
        wire(frame)
        opened.station.turn()
    with pytest.raises(TimeoutError):
        opened.station.run(lambda: False, 0.01, "nothing")
    [answer] = seen
    assert (
        answer[:6] == asker
        and answer[20:22] == b"\0\2"
        and answer[28:32] == own
        and answer[38:42] == bytes([10, 4, 0, 9])
    )


def test_an_unknown_connection_is_refused(opened: Bench) -> None:
    """A segment of no connection is answered by a reset that its sender believes."""
    target = target_of(opened)
    connection = opened.station.connect(target.address, target.port)
    [session] = target.sessions.values()
    opened.station.forget(connection)
    session.unsent += b"hello?"
    opened.station.run(lambda: session.connection.error is not None, 1, "no reset has come")
    assert "reset" in str(session.connection.error)


def opened_wire(bench: Bench) -> Callable[[bytes], None]:
    """Puts a frame on the bench's wire."""
    inner = bench.report.keywords["nic"].port.wire._inner  # type: ignore[attr-defined]
    return partial(inner.inject)


@pytest.mark.parametrize(("sizes", "pages"), [((24, 4096, 8192), 3), ((25, 4096, 8191), 0), ((24, 4000, 8288), 0)])
def test_pages_that_could_be_exchanged(opened: Bench, sizes: tuple[int, ...], pages: int) -> None:
    """Where segments happen to end with a PDU's header and with pages of its data, header split would do."""
    stream = TcpStream("10.4.0.2", "10.4.0.1", 4420, 40000, NIC_MAC)
    stream.data = data_pdu(7, b"x" * 3 * BLOCK)
    reader = Reader(
        opened.driver, None, source=stream.source, destination=stream.destination, source_port=stream.source_port,
        destination_port=stream.destination_port,
    )  # fmt: skip
    reader.read(7, 3 * BLOCK)
    place = 0
    for size in sizes:
        opened_wire(opened)(stream.segment(place, size))
        place += size
        for packet in opened.driver.poll(0):
            reader.take(packet)
    assert reader.copied == 3 * BLOCK and reader.exchangeable == pages * BLOCK
