"""How nicmodel is installed: from a wheel, or as a checkout that is used in place."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

_PACKAGE = Path(__file__).parent
_WHEEL_DATA = _PACKAGE / "data"  # pyproject.toml: force-include


def data_folder(name: str) -> Path:
    """A top-level folder of the repository that is no Python, such as ``guest``; a wheel has a copy in the package."""
    return _WHEEL_DATA / name if in_wheel() else _PACKAGE.parent / name


def in_wheel() -> bool:
    """Whether this is an installed wheel, with no checkout around it."""
    return _WHEEL_DATA.is_dir()


def pip_install(package: str) -> str:
    """The command that adds a package to the environment that runs this: pipx's, a venv's or the system's."""
    return shlex.join([sys.executable, "-m", "pip", "install", package])
