"""QEMU's plugin, compiled for the QEMU that is to load it."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

from nicmodel.vm.errors import VmError
from nicmodel.vm.qemu import Qemu
from nicmodel.vm.tools import build_qemu_plugin, check_host

_SOURCE = Path(__file__).with_name("plugin.c")
#: A version of the plugin interface that no QEMU has.
_NONE = 1_000_000
_ASK_SECONDS = 60


@functools.cache
def _compiled(api: int) -> Path:
    return build_qemu_plugin(_SOURCE, api)


@functools.cache
def _interface(command: tuple[str, ...], environment: tuple[tuple[str, str], ...], version: str) -> int:
    """The version of the plugin interface that a QEMU has: it names it when it refuses a plugin of another one."""
    words = [*command, "-machine", "none", "-display", "none", "-plugin", plugin_word(_compiled(_NONE))]
    try:
        asked = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                               env=os.environ | dict(environment), timeout=_ASK_SECONDS)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VmError(f"{version} cannot be asked whether it takes plugins: {error}") from None
    if found := re.search(r"supports only up to version (\d+)", asked.stderr):
        return int(found[1])
    said = asked.stderr.strip().rpartition("\n")[2] or "it does not say why"
    raise VmError(
        f"{version} takes no TCG plugins, by which coverage is measured ({said}). Debian's does: unset NICMODEL_QEMU, "
        "or see 'nicmodel vm --prepare'"
    )


def plugin(qemu: Qemu) -> Path:
    """The plugin for this QEMU; compiled if the cache does not have it.

    Raises:
        VmError: it takes no plugins, or nothing can be compiled on this host.
    """
    check_host()
    return _compiled(_interface(qemu.command, tuple(sorted(qemu.environment.items())), qemu.version))


def plugin_word(path: Path, **arguments: Path) -> str:
    """The value of QEMU's option -plugin. A comma in it is doubled."""
    words = {"file": path, **arguments}
    return ",".join(f"{name}={str(value).replace(',', ',,')}" for name, value in words.items())
