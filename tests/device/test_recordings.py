"""Recordings: what has reached a NIC is run again against it, and what it does otherwise is told in its own words.

Those of stock drivers are in `tests/device/recordings`; what makes them anew is described there.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner, Result
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from nicmodel.cli.main import cli
from nicmodel.cli.options import BROKEN
from nicmodel.cli.recordings import header_of, load, model_of
from nicmodel.gvnic.admin import AdminQueue
from nicmodel.gvnic.commands import QueueFormat
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.registers import Bar
from nicmodel.gvnic.testing import misbehave
from nicmodel.gvnic.testing import nic as gvnic
from nicmodel.gvnic.testing.driver import Driver as GvnicDriver
from nicmodel.gvnic.testing.gqi import GqiQueues
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.idpf.profile import Profile as IdpfProfile
from nicmodel.idpf.testing import nic as idpf
from nicmodel.idpf.testing.driver import Driver as IdpfDriver
from nicmodel.nic.interrupts import Interrupts
from nicmodel.nic.purpose import Purpose
from nicmodel.recording.blank import blanked
from nicmodel.recording.call import Call, RecordingError
from nicmodel.recording.compare import explain, run
from nicmodel.recording.file import Recording, read, write
from nicmodel.recording.minimise import Minimiser, effects_of
from nicmodel.testing.clock import VirtualClock
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.vfio_user import Client
from nicmodel.vfio_user.protocol import PciRegion
from nicmodel.vm.server import NicServer

from .frames import NIC_MAC, PEER_MAC

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("*.rec"), key=lambda path: path.stem)
MAC = bytes.fromhex(NIC_MAC.replace(":", ""))
SECRET = b"a secret of sixteen bytes or more"
SENT = 8
_GQI = Profile(mac=MAC, queues=2, formats=(QueueFormat.DQO_RDA, QueueFormat.GQI_RDA, QueueFormat.GQI_QPL))
FORMATS = {
    "dqo-rda": Profile(mac=MAC, queues=2),
    "gqi-rda": _GQI,
    "gqi-qpl": _GQI,
    "idpf": IdpfProfile(mac=MAC, queues=2),
}


def frame(number: int, payload: bytes = SECRET) -> bytes:
    kind = TCP(dport=5201, seq=number * 100) if number % 2 else UDP(dport=53)
    return bytes(Ether(src=PEER_MAC, dst=NIC_MAC) / IP(src=f"192.0.2.{number + 1}", dst="192.0.2.100") / kind / payload)


def record(kind: str) -> Recording:
    """What has reached the NIC, and what it did, in the life of a driver in Python."""
    profile: Any = FORMATS[kind]
    kit: Any = idpf if kind == "idpf" else gvnic
    calls: list[Call] = []
    with (
        GuestMemory("ram", size=64 << 20) as ram,
        kit.TestNic(profile, clock=VirtualClock(), record=calls.append) as nic,
    ):
        header = header_of("idpf" if kind == "idpf" else "gvnic", nic.device, nic.recorder, checked=False)
        live(kind, nic, ram)
    return Recording(header, calls)


def live(kind: str, nic: Any, ram: GuestMemory) -> None:
    """A driver is probed, receives and sends, sees the link go and come, and is removed."""
    with nic.connect(ram=ram) as driver:
        driver.probe()
        queues = None
        if kind.startswith("gqi"):
            queues = GqiQueues(driver, kind == "gqi-qpl", 64)
            queues.enable()
        else:
            driver.open()
        if kind != "idpf":
            driver.report_link_speed()
        for number in range(SENT):
            nic.inject(frame(number))
            out = bytes(Ether(src=NIC_MAC, dst=PEER_MAC) / IP() / UDP() / SECRET)
            driver.send(0, out) if queues is None else queues.send(out)
            nic.pause(0.001)
        nic.set_link(False)
        nic.set_link(True)
    nic.run()


def names(recording: Recording) -> set[str]:
    return {call.name for call in recording.calls}


def outcome_of(recording: Recording, **options: Any) -> Any:
    return run(recording, model_of(recording.header), **options)


@pytest.fixture(params=list(FORMATS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_same_nic_does_the_same(kind: str, tmp_path: Path) -> None:
    """*Steps*: a driver's life, recorded, written, read, run. *Verify*: no difference, no access that was not noted."""
    recording = record(kind)
    write(tmp_path / "nic.rec", recording)
    again = read(tmp_path / "nic.rec")
    assert again == recording
    outcome = outcome_of(again, keep=True)
    assert outcome.difference is None and outcome.unknown == 0 and not outcome.failures
    assert outcome.made == again.calls
    assert names(again) > {
        "start",
        "attach",
        "map",
        "set_irqs",
        "region_write",
        "inject",
        "set_cable",
        "when_idle",
        "detach",
    }
    assert sum(len(sent.frames) for call in again.calls for sent in call.sent) == SENT


def test_a_recording_is_deterministic() -> None:
    """Verify: what does not depend on where memory lies is the same in two recordings of the same."""
    once, twice = (record("dqo-rda").calls for _ in range(2))
    assert [(call.name, call.arguments, call.vectors) for call in once if call.name != "attach"] == [
        (call.name, call.arguments, call.vectors) for call in twice if call.name != "attach"
    ]


def test_without_a_recording_nothing_is_noted(kind: str) -> None:
    kit: Any = idpf if kind == "idpf" else gvnic
    profile: Any = FORMATS[kind]
    with GuestMemory("ram", size=64 << 20) as ram, kit.TestNic(profile, clock=VirtualClock()) as nic:
        live(kind, nic, ram)
        state = nic.device.state
        assert nic.recorder is None and len(state.notes) == len(state.noted) == state.device["notes"][0] == 0
        assert state.device["region"][0] >= 0


# A NIC that was changed.


def explained(recording: Recording, before: int = 10) -> Any:
    """The first difference."""
    model = model_of(recording.header)
    difference = run(recording, model).difference
    assert difference is not None
    explain(recording, model, difference, before=before)
    return difference


def with_speed(recording: Recording, speed: int) -> Recording:
    """The same with a NIC of another link speed, Mbit/s."""
    profile = recording.header.profile | {"link_speed": speed}
    return replace(recording, header=replace(recording.header, profile=profile))


def changes_of(recording: Recording) -> dict[str, tuple[Any, Any]]:
    return {change.what: (change.recorded, change.now) for change in explained(recording).changes}


def test_another_link_speed_is_named() -> None:
    """*Steps*: the same recording with a NIC of another link speed. *Verify*: the answer that tells it is told."""
    recording = record("dqo-rda")
    slower = with_speed(recording, 25_000)
    difference = explained(slower)
    [change] = difference.changes
    assert change.what.startswith("answer to REPORT_LINK_SPEED")
    assert (int(change.recorded, 16), int(change.now, 16)) == (100_000, 25_000)
    assert [event["kind"] for event in difference.before].count("admin") >= 1


def test_a_register_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = record("dqo-rda")
    read_registers = Nic.read_registers

    def changed(self: Nic, region: int, offset: int, count: int) -> bytes:
        data = read_registers(self, region, offset, count)
        return data[:-1] + bytes([data[-1] ^ 8]) if offset == 0 and region == 0 else data

    monkeypatch.setattr(Nic, "read_registers", changed)
    found = changes_of(recording)
    assert "register device_status: flags" in found or any(name.startswith("register device_status") for name in found)


@pytest.mark.parametrize("kind", ["dqo-rda", "idpf"], indirect=True)
def test_a_completion_is_named_by_its_field(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """*Steps*: the frames of a recording come with wrong checksums. *Verify*: the completion's bit is told by name."""
    recording = record(kind)
    for call in recording.calls:
        if call.name == "inject":
            octets = bytearray.fromhex(call.arguments[1][0][0])
            octets[-1] ^= 1
            call.arguments[1][0][0] = octets.hex()
    name = {"dqo-rda": "l4_checksum_error", "idpf": "l4_checksum_error"}[kind]
    found = {
        what.rpartition(".")[2]: values for what, values in changes_of(recording).items() if what.startswith("rx ")
    }
    assert found[name] == (0, 1)


def test_what_is_sent_is_named_by_its_field() -> None:
    recording = record("dqo-rda")
    [call] = [one for one in recording.calls if one.sent][:1]
    first = call.sent[0].frames[0]
    packet = Ether(first.data)
    packet[IP].ttl = 63
    call.sent[0] = call.sent[0]._replace(frames=(first._replace(data=bytes(packet)), *call.sent[0].frames[1:]))
    assert changes_of(recording)["frame 0 sent: IP.ttl"] == ("63", "64")


def test_an_interrupt_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = record("dqo-rda")
    raise_vector = Interrupts.raise_vector
    monkeypatch.setattr(Interrupts, "raise_vector", lambda self, vector: None if vector else raise_vector(self, vector))
    found = changes_of(recording)
    assert any(what.startswith("interrupts of vector") and values == (1, 0) for what, values in found.items())


def test_what_was_read_that_is_not_there() -> None:
    """*Steps*: a NIC that reads more than the one that was recorded. *Verify*: that is counted."""
    recording = record("dqo-rda")
    for call in recording.calls:
        call.reads = [one for one in call.reads if one.purpose != Purpose.COMMAND]
    assert outcome_of(recording).unknown > 0


# Smaller ones.


def test_a_recording_is_made_smaller() -> None:
    """*Steps*: a NIC that answers one command wrongly. *Verify*: what led there remains, and hardly anything else."""
    recording = record("dqo-rda")
    slower = with_speed(recording, 25_000)
    model = model_of(slower.header)
    [effect] = effects_of(run(slower, model))
    told: list[tuple[int, int]] = []
    minimiser = Minimiser(slower, model, effect, tries=400, seconds=60, tell=lambda *one: told.append(one))
    smaller = minimiser.run()
    assert len(smaller.calls) <= 12 < len(slower.calls) // 9
    assert [call.name for call in smaller.calls].count("region_write") >= 2
    assert len(told) == minimiser.tries <= 400
    outcome = run(smaller, model)
    assert outcome.difference is not None and outcome.difference.number == len(smaller.calls) - 1
    assert explained(smaller).changes == explained(slower).changes


def test_an_exception_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = record("dqo-rda")

    def fails(*_given: Any) -> None:
        raise ZeroDivisionError("no speed")

    monkeypatch.setattr(AdminQueue, "_report_link_speed", fails)
    logging.disable()
    try:
        model = model_of(recording.header)
        effect = next(effects_of(run(recording, model)))
        assert "no speed" in str(effect)
        smaller = Minimiser(recording, model, effect, tries=400, seconds=60).run()
        assert len(smaller.calls) < 12
        assert next(effects_of(run(smaller, model))).sign == effect.sign
    finally:
        logging.disable(logging.NOTSET)


def test_a_finding_remains() -> None:
    """*Steps*: a driver that breaks one rule. *Verify*: it does in a replay; in a smaller recording it does, too."""
    calls: list[Call] = []
    with Loopback(misbehave.profile(), check=True, record=calls.append) as nic:
        assert nic.recorder is not None
        misbehave.open_queues(nic.driver)
        misbehave.misbehave(nic, "RX-BUF-003")
        recording = Recording(header_of("gvnic", nic.nic, nic.recorder, checked=True), calls[:])
        assert [one.rule.name for one in nic.findings] == ["RX-BUF-003"]
    model = model_of(recording.header)
    outcome = run(recording, model, check=True)
    assert [one.rule.name for _, one in outcome.findings] == ["RX-BUF-003"]
    assert outcome.difference is None
    [effect] = effects_of(outcome)
    smaller = Minimiser(recording, model, effect, tries=600, seconds=60).run()
    assert len(smaller.calls) < len(recording.calls) // 3
    assert effect.sign in [(one.rule.name, one.queue) for _, one in run(smaller, model, check=True).findings]


def test_the_minimiser_is_bounded() -> None:
    recording = record("dqo-rda")
    slower = with_speed(recording, 25_000)
    model = model_of(slower.header)
    [effect] = effects_of(run(slower, model))
    few = Minimiser(slower, model, effect, tries=3, seconds=60)
    assert run(few.run(), model).difference is not None
    assert few.tries == 3 and not few.in_time


# To be shared.


def test_payload_is_blanked(kind: str, tmp_path: Path) -> None:
    """*Verify*: no payload is left anywhere; headers are; what the NIC makes of it is what it made before."""
    recording = record(kind)
    plain, blank = tmp_path / "plain.rec", tmp_path / "blank.rec"
    write(plain, recording)
    blanked_one = blanked(recording, model_of(recording.header))
    write(blank, blanked_one)
    text = "\n".join(json.dumps(call.as_json()) for call in read(blank).calls)
    assert SECRET.hex() in "".join(json.dumps(call.as_json()) for call in read(plain).calls)
    assert SECRET[:4].hex() not in text
    outcome = outcome_of(blanked_one)
    assert outcome.difference is None and outcome.unknown == 0
    for before, after in zip(recording.calls, blanked_one.calls, strict=True):
        assert (before.name, before.answer, before.vectors) == (after.name, after.answer, after.vectors)
        # Lengths, hashes, checksum verdicts and completions are those of before.
        small = [[one for one in call.writes if len(one.data) <= 16] for call in (before, after)]
        assert small[0] == small[1]


def test_what_shows_a_difference_is_not_blanked() -> None:
    recording = record("dqo-rda")
    slower = with_speed(recording, 25_000)
    with pytest.raises(RecordingError, match="something else"):
        blanked(slower, model_of(slower.header))


# Stock drivers.


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_stock_driver(path: Path) -> None:
    """*Steps*: what a stock driver has done to the NIC, from probe to removal. *Verify*: the NIC does as it did.

    If it does not on purpose: ``make record``, or ``nicmodel replay FILE --again FILE``.
    """
    recording, model = load(path)
    outcome = run(recording, model)
    if outcome.difference is not None:
        explain(recording, model, outcome.difference)
        shown = CliRunner().invoke(cli, ["replay", str(path)])
        pytest.fail(shown.output)
    assert not outcome.failures and outcome.unknown == 0 and not recording.missing


def test_stock_drivers_are_there() -> None:
    """Verify: four of them, small; each has had traffic."""
    assert [path.stem for path in RECORDINGS] == ["gve-dqo", "gve-dqo-qpl", "gve-gqi", "idpf"]
    for path in RECORDINGS:
        calls = read(path).calls
        assert path.stat().st_size < 100_000
        assert sum(len(call.arguments[1]) for call in calls if call.name == "receive") >= 10
        assert sum(len(sent.frames) for call in calls for sent in call.sent) >= 10


# The commands.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recording's file."""
    write(tmp_path / "nic.rec", record("dqo-rda"))
    return tmp_path / "nic.rec"


def replay(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["replay", *map(str, words)])


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command has no log, for the rest of its process."""
    yield
    logging.disable(logging.NOTSET)


def test_the_command(path: Path, tmp_path: Path) -> None:
    """*Steps*: replay, also with another NIC, as JSON, and smaller. *Verify*: exit status, and what is said."""
    good = replay(path)
    assert good.exit_code == 0 and good.stdout.endswith("no difference\n")
    other = tmp_path / "other.rec"
    write(other, with_speed(read(path), 25_000))
    bad = replay(other, "--before", "2", "--minimise", tmp_path / "small.rec")
    assert bad.exit_code == BROKEN
    assert "answer to REPORT_LINK_SPEED" in bad.stdout
    assert "recorded 00000000000186a0, now 00000000000061a8" in bad.stdout
    assert "admin     REPORT_LINK_SPEED PASSED" in bad.stdout
    assert "small.rec" in bad.stderr and len(read(tmp_path / "small.rec").calls) < 12
    found = json.loads(replay(other, "--json").stdout)
    assert found["difference"]["changes"][0]["now"] == "00000000000061a8"
    again = replay(other, "--again", other)
    assert again.exit_code == 0 and replay(other).exit_code == 0


def test_what_cannot_be_replayed(tmp_path: Path) -> None:
    """Verify: one sentence, and nothing that a terminal would obey."""
    file = tmp_path / "x.rec"
    header = record("dqo-rda").header
    for wrong in (
        replace(header, device="\x1b[2J"),
        replace(header, profile={"queues": "2"}),
        replace(header, profile={"queues": 1 << 40}),
        replace(header, profile={"\x1b[2J": 1}),
        replace(header, profile={"formats": [99]}),
        replace(header, profile={"mac": "00"}),
    ):
        write(file, Recording(wrong))
        said = replay(file)
        assert said.exit_code == 1 and said.exception.__class__ is SystemExit
        assert said.output.startswith("Error: ") and said.output.count("\n") == 1
        assert "\x1b" not in said.output
    assert replay(tmp_path / "none.rec").output == f"Error: {tmp_path}/none.rec: No such file or directory\n"


def test_what_is_printed_is_escaped(tmp_path: Path) -> None:
    """*Steps*: a recording with control sequences wherever text is. *Verify*: none is printed."""
    recording = with_speed(record("dqo-rda"), 25_000)
    evil = "\x1b[2J\n"
    recording.header = replace(recording.header, nic=evil, version=evil)
    for call in recording.calls:
        call.faults = [evil]
        if call.name == "attach":
            call.arguments = [evil]
    write(tmp_path / "nic.rec", recording)
    said = replay(tmp_path / "nic.rec", "--before", "1000")
    assert said.exit_code == BROKEN and "\\x1b[2J\\n" in said.output and "\x1b" not in said.output


def test_calls_that_make_no_sense(tmp_path: Path) -> None:
    """*Steps*: the calls of a recording in any order, some of them twice. *Verify*: the run ends, with some outcome."""
    recording = record("dqo-rda")
    random = Random(1)
    logging.disable()
    for _ in range(20):
        calls = random.choices(recording.calls, k=100)
        outcome = outcome_of(Recording(recording.header, calls))
        assert outcome.difference is None or 0 <= outcome.difference.number < 100


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("killed", [False, True])
def test_a_server_that_records(tmp_path: Path, killed: bool) -> None:
    """*Steps*: a server with a NIC of either kind, each with a driver; it ends, or is killed. *Verify*: both replay."""
    files = [tmp_path / "a.rec", tmp_path / "b.rec"]
    words = ["--device", "gvnic", "--device", "idpf", "--wire", "link", "--queues", "2"]
    words += [word for file in files for word in ("--record", str(file))]
    with NicServer(words, sockets=2) as server, GuestMemory("ram", size=64 << 20) as ram:
        with GvnicDriver(Client(str(server.sockets[0])), ram=ram) as driver:
            driver.probe()
            driver.open(rx_queues=2, tx_queues=2)
        with IdpfDriver(Client(str(server.sockets[1])), ram=ram) as other:
            other.probe()
        if killed:
            assert wait_until(lambda: all("detach" in names(read(file)) for file in files))
            server.kill()
        else:
            server.stop()
    for file, kind in zip(files, ("gvnic", "idpf"), strict=True):
        recording, model = load(file)
        assert recording.header.device == kind
        assert bool(recording.missing) is killed
        assert names(recording) >= {"start", "attach", "map", "region_write", "detach"}
        assert run(recording, model).difference is None


def test_a_recording_that_is_full(tmp_path: Path) -> None:
    """*Steps*: more calls than there is room for. *Verify*: the file ends, the server goes on."""
    file = tmp_path / "nic.rec"
    with NicServer(["--record", str(file), "--record-limit", "1"]) as server, Client(str(server.sockets[0])) as client:
        random = Random(1)
        for _ in range(150):
            for _ in range(200):
                client.region_write(Bar.DOORBELLS, 0, random.randbytes(64), posted=True)
            client.device_info()
        assert client.region_read(PciRegion.CONFIG, 0, 2) == b"\xe0\x1a"
        assert "as large as it may be" in server.log()
    assert 1 << 20 <= file.stat().st_size < 2 << 20
    assert "as large" in read(file).missing


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--record", "a.rec", "--record", "b.rec"], "2 recordings for 1 NICs"),
        (["--record", "/nowhere/a.rec"], "--record /nowhere/a.rec: No such file or directory"),
    ],
)
def test_what_cannot_be_recorded(tmp_path: Path, words: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["serve", "--socket", str(tmp_path / "nic.sock"), *words])
    assert result.exit_code in (1, 2) and said in result.output
