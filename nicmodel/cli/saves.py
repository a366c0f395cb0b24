"""Waiting for a folder to be changed: for what an editor, git or anything else saves in it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

#: Seconds of silence after which a save is taken for complete: editors and git write several files.
_SILENCE = 0.1


class Saves(FileSystemEventHandler):
    """Watches a folder, and all below it. Use it as a context manager.

    Reading is no event, so that whoever looks at the files does not wake himself.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed = threading.Event()
        self._first = 0.0
        self._observer = Observer()

    def __enter__(self) -> Self:
        self._observer.schedule(self, str(self._folder), recursive=True)
        self._observer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._observer.stop()
        self._observer.join()

    def wait(self) -> float:
        """Wait until something has been saved since the last time; when that began, on the monotonic clock."""
        self._changed.wait()
        first = self._first
        while True:
            self._changed.clear()
            if not self._changed.wait(_SILENCE):
                return first

    def _note(self, event: FileSystemEvent) -> None:
        if not self._changed.is_set():
            self._first = time.monotonic()
            self._changed.set()

    # What watchdog calls; opening a file and closing it without a change are further events.
    on_created = on_modified = on_moved = on_deleted = _note
