"""One cell of a campaign, run on a worker, which needs no more than this package and a cache folder."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nicmodel.vm.campaign.plan import RESULT, Cell, File
from nicmodel.vm.qemu import spawn

#: Bytes of what a cell prints that are kept, its last; and of the result that it writes.
MAX_OUTPUT, MAX_RESULT = 64 << 10, 16 << 20
#: Seconds that a cell has for ending in order when its time is over.
_GRACE = 20.0

#: Exit status by which commands say that a driver has broken something (`nicmodel.cli.options.BROKEN`).
_BROKEN = 3


@dataclass(frozen=True)
class Outcome:
    """What has become of a cell.

    Attributes:
        status: "good"; "broken", which the command has found; "failed", it could not tell; "hung", it was ended when
            its time was over; "lost", with its worker.
        code: The command's exit status; None: it has none.
        seconds: How long it took.
        cpu: Seconds of processors that it and all its processes used.
        worker: Host and process that ran it.
        output: The last of what it printed.
        result: What it wrote to ``{result}``; empty: nothing.
    """

    status: str
    code: int | None = None
    seconds: float = 0.0
    cpu: float = 0.0
    worker: str = ""
    output: str = ""
    result: str = ""


def run(cell: Cell, files: Mapping[str, File]) -> Outcome:
    """Run a cell here, and wait for it.

    Args:
        cell: What to run.
        files: What comes with it, by the name that it has in the command.
    """
    with tempfile.TemporaryDirectory(prefix="nicmodel-cell-") as work:
        folder = Path(work)
        result = folder / RESULT
        places = {RESULT: str(result)} | {
            name: str(_put(file, folder / "files" / name)) for name, file in files.items()
        }
        words = []
        for word in cell.words:
            for name, place in places.items():
                word = word.replace(f"{{{name}}}", place)
            words.append(word)
        command = [sys.executable, "-m", "nicmodel.cli", *words]
        before, started = _cpu(), time.monotonic()
        with spawn(
            command, {"TMPDIR": work, "COLUMNS": "100"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=work
        ) as process:
            assert process.stdout is not None
            said = _Said(process.stdout.fileno())
            hung = False
            try:
                process.wait(cell.timeout)
            except subprocess.TimeoutExpired:
                hung = True
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)
            finally:
                process.kill()
        seconds = time.monotonic() - started
        output = said.last()
        status = "hung" if hung else {0: "good", _BROKEN: "broken"}.get(process.returncode, "failed")
        written = ""
        if result.is_file():
            with result.open("rb") as file:
                content = file.read(MAX_RESULT + 1)
            if len(content) > MAX_RESULT:
                output += f"\nits result is larger than {MAX_RESULT:,} bytes and not kept\n"
            else:
                written = content.decode(errors="replace")
        worker = f"{socket.gethostname()}:{os.getpid()}"
        return Outcome(status, None if hung else process.returncode, seconds, _cpu() - before, worker, output, written)


class _Said(threading.Thread):
    """Takes what a cell prints, however much that is, and keeps the last of it."""

    def __init__(self, pipe: int) -> None:
        super().__init__(daemon=True)
        self._pipe, self._kept = os.dup(pipe), b""
        self.start()

    def run(self) -> None:
        with open(self._pipe, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 16):
                self._kept = (self._kept + data)[-MAX_OUTPUT:]

    def last(self) -> str:
        """What there was when the cell had ended; a process that it has left behind is not waited for."""
        self.join(5)
        return self._kept.decode(errors="replace")


def _put(file: File, folder: Path) -> Path:
    """Put a file where the command finds it, under its own name: that of a module says what it is."""
    place = folder / file.name
    if file.is_folder:
        place.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(file.content)) as archive:
            # An argument would be an error before Python 3.11.4, which has no filters; Debian 12 has 3.11.2.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(place)
    else:
        folder.mkdir(parents=True)
        place.write_bytes(file.content)
    return place


def _cpu() -> float:
    """Of all processes that have ended, and were this one's."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
