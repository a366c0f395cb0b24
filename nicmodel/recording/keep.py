"""Keeps a recording of a NIC that is served."""

from __future__ import annotations

from typing import Any

from nicmodel.recording.call import Call
from nicmodel.recording.file import INCOMPLETE, Writer
from nicmodel.recording.recorder import Recorder

#: What was recorded is in the file after so many ns.
_SOON = 250_000_000


class Keeper:
    """Writes the calls of one NIC to a file, until `close`, or until the file is full.

    Args:
        recorder: who notes them.
        writer: the file.
    """

    def __init__(self, recorder: Recorder, writer: Writer) -> None:
        self._recorder = recorder
        self._writer = writer
        self._timer: Any = None
        recorder.tell = self._keep

    def close(self) -> None:
        """End the recording."""
        self._recorder.stop()
        self._writer.close()

    def _keep(self, call: Call) -> None:
        self._writer.write(call)
        if not self._recorder.complete:
            self._writer.close(INCOMPLETE)
        if not self._writer.open:
            self._recorder.stop()
        elif self._timer is None:
            inner = self._recorder.inner
            self._timer = inner.call_at(inner.clock() + _SOON, self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._writer.flush()
