"""A NIC server as a process of its own, ``nicmodel serve``, for guests that are started from Python."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nicmodel.client.control import Control, ControlError
from nicmodel.observe.compiling import BEGINS, PROGRESS
from nicmodel.observe.findings import as_text
from nicmodel.vm.errors import VmError
from nicmodel.vm.progress import step, still
from nicmodel.vm.qemu import spawn

#: Seconds without a word from a server that is not ready. While it compiles the packet path, it says how far it is.
_START_TIMEOUT = 180.0
_TIMEOUT = 10.0


class NicServer:
    """Context manager: a running ``nicmodel serve``.

    Args:
        arguments: for ``nicmodel serve``, except ``--socket``, ``--control`` and ``--report``.
        sockets: how many NICs.
        prefix: put before the command, such as ``("ip", "netns", "exec", "name")``.
        folder: where sockets and report lie; a temporary folder if None.

    Attributes:
        sockets: where QEMU connects, one path per NIC.
        control: its control socket, for `nicmodel.client.control.Control`.
        pid: its process.

    Raises:
        VmError: it did not come up; the text is what it said.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        sockets: int = 1,
        prefix: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="nicmodel-") if folder is None else None
        self._folder = Path(self._temporary.name) if self._temporary else Path(str(folder))
        self.sockets = [self._folder / f"nic{number}.sock" for number in range(sockets)]
        self.control = self._folder / "control.sock"
        self._report = self._folder / "report.json"
        self._lines: list[str] = []
        self._arguments = arguments
        self._prefix = prefix
        self._process: subprocess.Popen[str] | None = None
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.stop()
        if self._temporary:
            self._temporary.cleanup()

    def start(self) -> None:
        """Start the process and wait until QEMU can connect."""
        command = [
            *self._prefix,
            sys.executable,
            "-m",
            "nicmodel.cli",
            "serve",
            "--control",
            str(self.control),
            "--report",
            str(self._report),
            *self._arguments,
        ]
        for socket in self.sockets:
            command += ["--socket", str(socket)]
        self._ready.clear()
        self._process = spawn(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        reader.start()
        deadline = time.monotonic() + _START_TIMEOUT
        said = 0
        with contextlib.ExitStack() as compiling:
            while not self._ready.wait(0.05):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    reader.join(_TIMEOUT)  # it may not have seen yet what was said last
                    raise VmError("the NIC server did not start: " + (self.log().strip() or "it said nothing"))
                for line in self._lines[said:]:
                    said += 1
                    deadline = time.monotonic() + _START_TIMEOUT
                    if line.startswith(BEGINS):
                        compiling.enter_context(step(line.strip()))
                    elif PROGRESS in line:
                        still(line.strip())

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.append(line)
            if line == "ready\n":
                self._ready.set()

    @property
    def pid(self) -> int:
        """Process number of the running server."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def compiled(self) -> bool:
        """Whether it had to compile the packet path before it was ready."""
        return any(line.startswith(BEGINS) for line in self._lines)

    def log(self) -> str:
        """All that it has printed."""
        return "".join(self._lines)

    def report(self) -> list[dict[str, Any]]:
        """State and counters now, one `nicmodel.observe.snapshot` per NIC."""
        try:
            with Control(self.control) as control:
                return control.stat()
        except ControlError as error:
            raise VmError(f"the NIC server gave no report: {error}\n{self.log()}") from None

    def findings(self, *, without: Collection[str] = ()) -> str:
        """How drivers have broken the contract so far, except for some rules, as text.

        Raises:
            VmError: the server does not check it (``--check``, ``--strict``), or does not answer.
        """
        try:
            with Control(self.control) as control:
                return "\n".join(as_text(found) for found in control.findings() if found["rule"] not in without)
        except ControlError as error:
            raise VmError(f"the NIC server tells no findings: {error}\n{self.log()}") from None

    def stop(self) -> list[dict[str, Any]]:
        """End the server in order; its last report, none if it was killed."""
        if self._process is not None and self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_TIMEOUT)
        self.kill()
        return json.loads(self._report.read_text("utf-8")) if self._report.exists() else []

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
