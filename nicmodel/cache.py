"""Where everything is kept that can be made again: downloads, images, compiled code."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache folder, ``$XDG_CACHE_HOME/nicmodel`` or ``~/.cache/nicmodel``; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nicmodel"


def by_last_use(folder: Path) -> list[Path]:
    """The folders in a folder of the cache, by their modification times, the newest first.

    Others may delete some meanwhile: those that are gone are left out.
    """
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                found.append((status.st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]
