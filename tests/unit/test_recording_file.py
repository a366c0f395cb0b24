"""The file of a recording: what is written is read, as far as it is there; what is wrong is said in a sentence."""

from __future__ import annotations

import gzip
import json
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nicmodel.nic.purpose import Purpose
from nicmodel.recording import file
from nicmodel.recording.call import CALLS, FIELDS, Access, Call, Frame, RecordingError, Sent
from nicmodel.recording.file import FULL, Header, Recording, Writer, read, write

HEADER = Header("nic0", "gvnic", {"queues": 2}, {"headroom": 12, "offloads": 15, "speed": 10_000}, 1_000)
FRAME = Frame(b"\x01" * 60, (0, 1, *[0] * (len(FIELDS) - 2)))
CALL_ARGUMENTS: dict[str, list[Any]] = {
    "start": [True],
    "attach": ["qemu"],
    "map": [0, 1 << 30, True, True, False],
    "unmap": [0, 1 << 64],
    "set_irqs": [2, 36, 0, 1, "", 1],
    "region_read": [0, 0, 4],
    "region_write": [0, 0, "00000001"],
    "receive": [72, [["ff" * 60, 0, 1]]],
    "inject": [72, [["ff" * 60]]],
    "send": [72, [["ff" * 60]]],
    "link": [False],
    "set_cable": [False],
    "timer": [1_500],
}


def call(name: str = "messages_read", **fields: Any) -> Call:
    return Call(name, 2_000, 3, CALL_ARGUMENTS.get(name, []), **fields)


def full() -> Call:
    """A call of which everything is to be said."""
    return call(
        "region_read",
        reads=[Access(0x1000, b"\x01\x02", Purpose.DESCRIPTOR)],
        answer=b"\0\0\0\1",
        error=22,
        writes=[Access((1 << 64) - 1, b"\xff", Purpose.ANSWER)],
        vectors=[0, 7],
        sent=[Sent(False, (FRAME,)), Sent(True, ())],
        faults=["tx-drop"],
    )


def packed(*lines: Any) -> bytes:
    return gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nic.rec"


def test_what_is_written_is_read(path: Path) -> None:
    recording = Recording(HEADER, [full(), *(call(name) for name in CALLS)])
    assert write(path, recording) == path.stat().st_size
    assert read(path) == recording


def test_stock_tools_read_it(path: Path) -> None:
    write(path, Recording(HEADER, [call()]))
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert [next(iter(line)) for line in lines] == ["recording", "call", "end"]


def test_what_is_not_expected_is_not_kept(path: Path) -> None:
    """Only how the wire has taken frames remains, as it decides how the NIC goes on."""
    write(path, Recording(HEADER, [Call(**{**vars(full()), "expected": False})]))
    [found] = read(path).calls
    assert found.sent == full().sent and found.reads == full().reads
    assert (found.expected, found.answer, found.writes, found.vectors) == (False, None, [], [])


def test_a_killed_writer(path: Path) -> None:
    """Verify: what was flushed is there, whole; that there is no end is said."""
    writer = Writer(path.open("wb"), HEADER, 1 << 20)
    for _ in range(100):
        writer.write(full())
    writer.flush()
    writer.write(call())
    recording = read(path)
    writer.close()
    assert recording.calls == [full()] * 100
    assert "no end" in recording.missing
    assert not read(path).missing


def test_any_beginning_of_a_file_is_one_of_the_recording(path: Path) -> None:
    write(
        path, Recording(HEADER, [call("region_write", reads=[Access(at, bytes([at % 251]), 2)]) for at in range(300)])
    )
    whole, octets = read(path), path.read_bytes()
    most = 0
    for length in range(0, len(octets), 29):
        path.write_bytes(octets[:length])
        try:
            part = read(path)
        except RecordingError:
            assert most == 0
            continue
        assert part.calls == whole.calls[: len(part.calls)]
        assert part.missing or len(part.calls) == len(whole.calls)
        assert len(part.calls) >= most
        most = len(part.calls)
    assert most > 200


def test_a_limit(path: Path) -> None:
    writer = Writer(path.open("wb"), HEADER, 1 << 12)
    random = Random(1)
    calls = []
    while writer.open:
        calls.append(call("attach", reads=[Access(0, random.randbytes(500), Purpose.COMMAND)]))
        writer.write(calls[-1])
    assert 1 << 12 <= path.stat().st_size < 1 << 18
    recording = read(path)
    assert recording.calls == calls
    assert recording.missing == file._ENDS[FULL] != ""


def test_a_full_disk(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Verify: the recording ends, what is recorded does not."""

    class Full(BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() > 100:
                raise OSError(28, "No space left on device")
            return super().write(data)

    writer = Writer(Full(), HEADER, 1 << 20)
    for _ in range(10):
        writer.write(full())
        writer.flush()
    assert not writer.open
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (b"", "nothing in it"),
        (b"MZ" * 100, "damaged"),
        (gzip.compress(b"\x80\x04\x95"), "nothing in it"),
        (gzip.compress(b"\x80\x04\x95\n"), "no JSON"),
        (packed({}), "no recording"),
        (packed([]), "no recording"),
        (packed({**HEADER.as_json(), "format": 99}), "format 99"),
        (packed({**HEADER.as_json(), "format": "\x1b[2J" * 99}), "it has the format"),
        (packed({**HEADER.as_json(), "wire": None}), "of which NIC"),
        (packed({**HEADER.as_json(), "time": -1}), "a number"),
        (packed(HEADER.as_json(), {"call": "system"}), "no call"),
        (packed(HEADER.as_json(), {"call": "__init__"}), "no call"),
        (packed(HEADER.as_json(), {"call": "reset", "time": 1 << 70, "turn": 0}), "reset"),
        (packed(HEADER.as_json(), {"call": "reset", "time": 0, "turn": 0, "arguments": [1]}), "reset"),
        (packed(HEADER.as_json(), {"call": "reset", "time": 0, "turn": 0, "writes": [[0, "0", 0]]}), "reset"),
        (packed(HEADER.as_json(), {"call": "reset", "time": 0, "turn": 0, "writes": [[0, "00", 99]]}), "reset"),
        (
            packed(HEADER.as_json(), {"call": "receive", "time": 0, "turn": 0, "arguments": [0, [["", *[0] * 99]]]}),
            "too",
        ),
        (
            packed(HEADER.as_json(), {"call": "region_write", "time": 0, "turn": 0, "arguments": [99, 0, "00"]}),
            "number",
        ),
        (packed(HEADER.as_json(), 7), "no record"),
        (gzip.compress(b"[" * 1_000_000 + b"\n"), "no JSON"),
        (gzip.compress(b'{"time":' + b"9" * 100_000 + b"}\n"), "no JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # gzip's header has the time
)
def test_what_is_no_recording(path: Path, octets: bytes, said: str) -> None:
    path.write_bytes(octets)
    with pytest.raises(RecordingError, match=said) as caught:
        read(path)
    assert len(str(caught.value)) < 300


def test_a_bomb(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify: neither a line nor a file without end is held in memory."""
    monkeypatch.setattr(file, "MOST_BYTES", 8 << 20)
    path.write_bytes(gzip.compress(b" " * (64 << 20)))
    with pytest.raises(RecordingError, match="larger than 8 MiB"):
        read(path)
    monkeypatch.setattr(file, "_MOST_LINE", 4 << 20)
    with pytest.raises(RecordingError, match="too long"):
        read(path)
    monkeypatch.setattr(file, "MOST_CALLS", 10)
    path.write_bytes(packed(HEADER.as_json(), *[call().as_json()] * 11))
    with pytest.raises(RecordingError, match="more than 10 calls"):
        read(path)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Verify: fields of any kind in any place are read, or refused by a sentence."""
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
    lines: list[Any] = [HEADER.as_json(), full().as_json(), call("receive").as_json()]
    chosen = data.draw(st.sampled_from(lines))
    chosen[data.draw(st.sampled_from(list(chosen)))] = data.draw(anything)
    path = tmp_path_factory.getbasetemp() / "damaged.rec"
    path.write_bytes(packed(*lines))
    try:
        read(path)
    except RecordingError as error:
        assert str(error)
