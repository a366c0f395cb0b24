"""Snapshots: guests that have booted, without NICs, kept in files from which guests like them start in a second.

A snapshot is QEMU's migration stream, with each page of memory at a place of its own in the file (QEMU,
docs/devel/migration/mapped-ram.rst). Pages of zeros are holes in it.

It serves only guests that are the same in everything that it depends on, which its name stands for: see `identity`.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nicmodel.cache import by_last_use, cache_dir
from nicmodel.vm.errors import VmError
from nicmodel.vm.packages import WORKPLACE, building, locked
from nicmodel.vm.qmp import Qmp

KEPT = 20
KEPT_BYTES = 6 << 30
"""How many snapshots are kept, and how much of the disk they may take; those that were not used for longest go."""

_TIMEOUT = 120
"""Seconds for a guest's state to be written or read: a few hundred megabytes."""


class SaveError(VmError):
    """A snapshot could not be made."""


class RestoreError(VmError):
    """A snapshot did not come to life."""


@dataclass(frozen=True)
class Snapshot:
    """One in the cache.

    Attributes:
        folder: Where it is.
        state: Descriptor of the file with the guest's state; it stays valid when the snapshot is deleted. The caller
            closes it.
        console: What the guest said on its serial console before.
    """

    folder: Path
    state: int
    console: bytes

    @property
    def path(self) -> str:
        """Path of the state for a process that has inherited the descriptor."""
        return f"/proc/self/fd/{self.state}"

    def drop(self) -> None:
        """Delete it: it is broken."""
        shutil.rmtree(self.folder, ignore_errors=True)


def identity(words: Sequence[str], files: Iterable[str | Path], more: Mapping[str, object]) -> str:
    """The name of the snapshot of a guest.

    Args:
        words: QEMU's command, without NICs.
        files: Files whose content matters, the program itself for one. Their sizes and times stand for it.
        more: Whatever else matters.
    """
    stats = [(str(file), os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
    subject = [Path(__file__).read_text("utf-8"), list(words), stats, _host_cpu(), dict(more)]
    return hashlib.sha256(json.dumps(subject).encode()).hexdigest()[:16]


def _host_cpu() -> list[str]:
    """What "max" and "host" stand for depends on it, with KVM."""
    return sorted(
        set(re.findall(r"^(?:model name|flags)\s*:.*$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE))
    )


def obtain(name: str, build: Callable[[Path], None]) -> Snapshot:
    """The snapshot of this name: from the cache, else made.

    Args:
        name: See `identity`.
        build: Makes the files "state" and "console" in a folder.

    Raises:
        VmError: It could not be made.
        OSError: Likewise: no room in the cache, for one.
    """
    folder = cache_dir() / "snapshots" / name
    with contextlib.suppress(FileNotFoundError):
        return _open(folder)
    # Few locks, since they are never deleted.
    with locked(folder.with_name(f"{name[0]}.lock"), "a snapshot of the guest"):
        with building(folder) as unfinished:
            if unfinished:
                build(unfinished)
        found = _open(folder)
    _prune(folder.parent)
    return found


def _open(folder: Path) -> Snapshot:
    state = os.open(folder / "state", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.utime(folder)
        return Snapshot(folder, state, (folder / "console").read_bytes())
    except OSError:
        os.close(state)
        raise


def _prune(folder: Path) -> None:
    """Delete what is more than is kept. Whoever restores one meanwhile has it open."""
    finished = (path for path in by_last_use(folder) if not path.name.startswith(WORKPLACE))
    total = 0
    for number, path in enumerate(finished):
        with contextlib.suppress(OSError):  # another process deletes, too
            total += sum(file.stat().st_blocks * 512 for file in path.iterdir())
        if number >= KEPT or (number and total > KEPT_BYTES):  # the newest is in use
            shutil.rmtree(path, ignore_errors=True)


def save(qmp: Qmp, path: Path) -> None:
    """Stop a guest, and write its state to a file.

    Raises:
        SaveError: It cannot be written: no room, or a device that cannot be saved.
    """
    try:
        qmp.execute("stop")
        _set_up(qmp)
        qmp.execute("migrate", {"channels": _channels(str(path))})
        _wait(qmp)
    except (VmError, TimeoutError, OSError, EOFError) as error:
        raise SaveError(f"it cannot be written: {error}") from error


def restore(qmp: Qmp, path: str) -> None:
    """Read a guest's state into a QEMU that was started with `-incoming defer`; it stands still then.

    Raises:
        RestoreError: The file is no such state, or another guest's.
    """
    try:
        _set_up(qmp)
        qmp.execute("migrate-incoming", {"channels": _channels(path), "exit-on-error": False})
        _wait(qmp)
    except (VmError, TimeoutError, OSError, EOFError) as error:
        raise RestoreError(f"it cannot be read: {error}") from error


def _set_up(qmp: Qmp) -> None:
    qmp.execute("migrate-set-capabilities", {"capabilities": [{"capability": "mapped-ram", "state": True}]})
    # Otherwise as slow as a network.
    qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})


def _channels(path: str) -> list[dict[str, Any]]:
    return [{"channel-type": "main", "addr": {"transport": "file", "filename": path, "offset": 0}}]


def _wait(qmp: Qmp) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while (state := qmp.execute("query-migrate")).get("status") != "completed":
        if state.get("status") in ("failed", "cancelled"):
            raise VmError(state.get("error-desc") or "QEMU does not say why")
        if time.monotonic() > deadline:
            raise VmError(f"it took more than {_TIMEOUT} s")
        time.sleep(0.01)
