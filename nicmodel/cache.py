"""Where everything is kept that can be made again: downloads, images, compiled code."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache folder, ``$XDG_CACHE_HOME/nicmodel`` or ``~/.cache/nicmodel``; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nicmodel"
