"""The file of a recording: lines of JSON, compressed by gzip; ``zcat`` shows it.

The first line says what it is, which version of the format, and of which NIC; each other one is a call
(`nicmodel.recording.call`), and the last one says why it ends. What has been written is whole after each `flush`, so
that a file whose writer was killed is read up to the last call before that.

What is read is not trusted: it is bounded, and nothing of it is executed.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from nicmodel import __version__
from nicmodel.recording.call import Call, RecordingError, flag, number, text

log = logging.getLogger(__name__)

FORMAT = 1
_MAGIC = "nicmodel"
_GZIP = 31
"""What zlib calls this format, with the largest window."""
_LEVEL = 6
_PIECE = 1 << 20
MOST_BYTES, MOST_CALLS = 1 << 28, 1 << 20
"""Of a file, when it is not compressed: what a replay holds in memory, a few times over."""
_MOST_LINE = 64 << 20
_FLUSHED = 1 << 18
"""Bytes of JSON after which what has been written is made whole."""

STOPPED, FULL, INCOMPLETE = "stopped", "full", "incomplete"
_ENDS = {
    STOPPED: "",
    FULL: "it was as large as it was allowed to be",
    INCOMPLETE: "one call made more accesses to memory than can be noted",
}


@dataclass(frozen=True)
class Header:
    """What a recording is of.

    Attributes:
        nic: the NIC's name.
        device: which kind of NIC it is.
        profile: what it offers, as JSON has it.
        wire: what its wire is: `headroom`, `offloads` and `speed`.
        time: its clock when it was made, ns.
        checked: whether what the contract's checker has read is there, too.
        version: of nicmodel, that it was recorded with.
    """

    nic: str
    device: str
    profile: dict[str, Any]
    wire: dict[str, int]
    time: int
    checked: bool = False
    version: str = __version__

    def as_json(self) -> dict[str, Any]:
        """The first line."""
        return {"recording": _MAGIC, "format": FORMAT, **vars(self)}

    @classmethod
    def parse(cls, fields: Any) -> Header:
        """The header that a line is.

        Raises:
            RecordingError: it is none, or of another format.
        """
        if not isinstance(fields, dict) or fields.get("recording") != _MAGIC:
            raise RecordingError("this is no recording of nicmodel's")
        if fields.get("format") != FORMAT:
            raise RecordingError(
                f"it has the format {str(fields.get('format'))[:20]}, and this version of nicmodel reads {FORMAT}"
            )
        wire, profile = fields.get("wire"), fields.get("profile")
        if not isinstance(wire, dict) or not isinstance(profile, dict):
            raise RecordingError("the recording does not say of which NIC it is")
        return cls(
            text(fields.get("nic")),
            text(fields.get("device")),
            profile,
            {name: number(wire.get(name), end) for name, end in _WIRE.items()},
            number(fields.get("time"), 1 << 62),
            flag(fields.get("checked", False)),
            text(fields.get("version")),
        )


#: What is said of a wire, and what it is less than.
_WIRE = {"headroom": 1 << 10, "offloads": 1 << 4, "speed": 1 << 31}


@dataclass
class Recording:
    """A recording.

    Attributes:
        header: what it is of.
        calls: the calls, in order.
        missing: why it has no end, or not the one it would have had; empty if it is whole.
    """

    header: Header
    calls: list[Call] = field(default_factory=list)
    missing: str = ""


class Writer:
    """Writes a recording, call by call.

    Args:
        file: where; it is closed in the end.
        header: what it is of.
        limit: the most bytes that the file is to have.
    """

    def __init__(self, file: BinaryIO, header: Header, limit: int) -> None:
        self._file: BinaryIO | None = file
        self._name = str(getattr(file, "name", "the recording"))
        self._limit = limit
        self._compress = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        self._written = self._pending = self._bytes = self._calls = 0
        self._line(header.as_json())
        self.flush()

    @property
    def open(self) -> bool:
        """Whether more can be written."""
        return self._file is not None

    def write(self, call: Call) -> None:
        """Add a call, if there is room."""
        if self._file is None:
            return
        self._line(call.as_json())
        self._calls += 1
        if self._pending > _FLUSHED:
            self.flush()
        if self._written >= self._limit or self._bytes >= MOST_BYTES - _MOST_LINE or self._calls >= MOST_CALLS:
            log.warning("%s is as large as it may be, and ends here: %d calls", self._name, self._calls)
            self.close(FULL)

    def flush(self) -> None:
        """Have all that was added be in the file."""
        if self._pending:
            self._pending = 0
            self._put(self._compress.flush(zlib.Z_SYNC_FLUSH))

    def close(self, why: str = STOPPED) -> None:
        """End it."""
        if self._file is not None:
            self._line({"end": why})
            self._put(self._compress.flush())
        if self._file is not None:
            self._file.close()
            self._file = None

    def _line(self, fields: dict[str, Any]) -> None:
        line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
        self._pending += len(line)
        self._bytes += len(line)
        self._put(self._compress.compress(line))

    def _put(self, data: bytes) -> None:
        if self._file is None or not data:
            return
        try:
            self._file.write(data)
            self._file.flush()
            self._written += len(data)
        except OSError as error:  # what is recorded goes on all the same
            log.error("%s ends here: %s", self._name, error.strerror)
            self._file.close()
            self._file = None


def write(path: Path, recording: Recording) -> int:
    """Write a recording; how many bytes the file has.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("wb") as file:
        writer = Writer(file, recording.header, MOST_BYTES)
        for call in recording.calls:
            writer.write(call)
        writer.close()
    return path.stat().st_size


def read(path: Path) -> Recording:
    """Read a recording.

    Raises:
        OSError: the file cannot be read.
        RecordingError: it is no recording, is damaged, or too large.
    """
    with path.open("rb") as file:
        lines = _lines(file)
        try:
            first = next(lines, None)
            if first is None:
                raise RecordingError("there is nothing in it that could be read")
            recording = Recording(Header.parse(_parsed(first)), missing=_NO_END)
            for line in lines:
                fields = _parsed(line)
                if isinstance(fields, dict) and "end" in fields:
                    recording.missing = _ENDS.get(text(fields["end"]), _NO_END)
                    break
                if len(recording.calls) == MOST_CALLS:
                    raise RecordingError(f"it has more than {MOST_CALLS} calls")
                recording.calls.append(Call.parse(fields))
        except zlib.error:
            raise RecordingError("it is damaged, or was not compressed by gzip") from None
    return recording


_NO_END = "it has no end, as when its server was killed; what was written before that is there"


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines that are whole."""
    stream = zlib.decompressobj(_GZIP)
    rest, total = b"", 0
    while not stream.eof:
        data = stream.unconsumed_tail or file.read(_PIECE)
        if not data:
            return
        text = stream.decompress(data, _PIECE)
        total += len(text)
        if total > MOST_BYTES:
            raise RecordingError(f"it is larger than {MOST_BYTES >> 20} MiB")
        *lines, rest = (rest + text).split(b"\n")
        yield from lines
        if len(rest) > _MOST_LINE:
            raise RecordingError("one of its lines is too long")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise RecordingError("one of its lines is no JSON") from None
