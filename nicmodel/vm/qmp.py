"""QEMU's machine protocol (QMP) for code that is not asynchronous."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from qemu.qmp import EventListener, QMPClient, QMPError

from nicmodel.vm.errors import VmError

_TIMEOUT = 120
"""Seconds for an answer; a device that is plugged in answers when its server has."""


class Qmp:
    """A connection to one QEMU. Methods may be called from any thread.

    Args:
        connection: The socket; it is closed with this object.
        on_event: Called with each event's name, in a thread of this object's.
    """

    def __init__(self, connection: socket.socket, on_event: Callable[[str], None]) -> None:
        self._on_event = on_event
        self._client = QMPClient()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True).start()
        self._call(self._connect(connection))

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a QMP command (QEMU, docs/interop/qemu-qmp-ref), e.g. `execute("device_del", {"id": "nic0"})`.

        Raises:
            VmError: QEMU refused the command, or is gone.
        """
        try:
            return self._call(self._client.execute(command, arguments))
        except QMPError as error:
            raise VmError(f"QEMU refused {command}: {error}") from error

    def close(self) -> None:
        """End the connection; QEMU goes on."""
        if self._loop.is_closed():
            return
        self._call(self._disconnect())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_TIMEOUT)

    async def _connect(self, connection: socket.socket) -> None:
        await self._client.connect(connection)
        listener = EventListener()
        self._client.register_listener(listener)
        self._events = asyncio.create_task(self._report(listener))

    async def _disconnect(self) -> None:
        self._events.cancel()
        with contextlib.suppress(QMPError, OSError, EOFError):  # QEMU was gone first
            await self._client.disconnect()

    async def _report(self, listener: EventListener) -> None:
        async for event in listener:
            self._on_event(str(event["event"]))
