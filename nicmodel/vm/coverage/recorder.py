"""Record which code of kernel modules runs in guests, test by test.

recorder = Recorder()
with Guest(config, recorder=recorder) as guest:
    recorder.context("ping")
    guest.run("ping -c 3 10.0.2.2")
    print(recorder.coverage().modules)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nicmodel.vm.coverage import files
from nicmodel.vm.coverage.build import plugin, plugin_word
from nicmodel.vm.coverage.data import Coverage, merge
from nicmodel.vm.coverage.live import LiveFile, is_live
from nicmodel.vm.coverage.module import Module
from nicmodel.vm.errors import VmError
from nicmodel.vm.kernel import Kernel, module_name
from nicmodel.vm.packages import HOST_ARCHITECTURE
from nicmodel.vm.qemu import Qemu


class Recorder:
    """Records what runs in the guests that are given it.

    Args:
        modules: names of modules of the guests' kernels, or files of modules that are loaded into them. None: the
            NICs' drivers.
        live: the file that is shared with QEMU while the one guest runs; None: one for each guest, in its own folder.

    What runs while no context is named counts for the context "".
    """

    def __init__(self, modules: Sequence[str] | None = None, live: Path | None = None) -> None:
        self._names = tuple(files.DRIVERS if modules is None else modules)
        self._all_wanted = modules is not None
        self._live = live
        self._context = ""
        self._running: list[_Recording] = []
        self._done = Coverage()
        # A test may end guests in threads.
        self._lock = threading.Lock()

    def context(self, name: str) -> None:
        """What runs from now on counts for this context."""
        with self._lock:
            for recording in self._running:
                recording.take(self._context)
            self._context = name

    def reset(self) -> None:
        """Forget all that has run so far."""
        with self._lock:
            self._done = Coverage()
            for recording in self._running:
                recording.forget()

    def coverage(self) -> Coverage:
        """All that has run so far. Guests may run on."""
        with self._lock:
            for recording in self._running:
                recording.take(self._context)
            whole = merge([self._done, *(recording.coverage() for recording in self._running)])
            return whole if self._all_wanted else _that_ran(whole)

    @contextmanager
    def recording(self, kernel: Kernel, qemu: Qemu, vcpus: int, folder: Path) -> Iterator[list[str]]:
        """For `Guest`: record a guest until the block ends, when it is gone.

        Args:
            kernel: the guest's.
            qemu: what runs it.
            vcpus: how many it has.
            folder: for the shared file, if none is named.

        Yields:
            What to add to QEMU's arguments.

        Raises:
            VmError: a module is not there, this QEMU takes no plugins, or the guest is of another architecture.
        """
        if not kernel.arch.is_hosts:
            raise VmError(f"coverage is told of {HOST_ARCHITECTURE} code only, and the guest is {kernel.arch.name}")
        modules = self._modules(kernel)
        for module, _ in modules:
            files.keep(module)
        about = {
            "release": kernel.release,
            "named": self._all_wanted,
            "modules": [{"name": module.name, "build_id": module.build_id, "file": file} for module, file in modules],
        }
        binary = plugin(qemu)
        path = self._live or folder / "coverage"
        with LiveFile.create(path.absolute(), vcpus, about) as live:
            recording = _Recording(live, modules)
            with self._lock:
                self._running.append(recording)
            try:
                yield ["-plugin", plugin_word(binary, live=live.path)]
            finally:
                with self._lock:
                    recording.take(self._context)
                    self._done.add(recording.coverage())
                    self._running.remove(recording)

    def _modules(self, kernel: Kernel) -> list[tuple[Module, str]]:
        """The modules, and the files of those that are the user's own."""
        found = []
        for name in self._names:
            if name.endswith(".ko") or "/" in name:
                module = Module.read(Path(name))
                module.name = module_name(Path(name).name)
                found.append((module, str(Path(name).absolute())))
            elif module_of_kernel := files.of_kernel(kernel, name):
                found.append((module_of_kernel, ""))
            elif self._all_wanted:
                raise VmError(
                    f"Linux {kernel.release} has no module {name}: name one that it has, or a file, such as ./{name}.ko"
                )
        return found


@contextmanager
def recorded(path: Path | None, modules: Sequence[str] = (), *, live: bool = True) -> Iterator[Recorder | None]:
    """A recorder whose coverage is written to a file when the block ends; none if there is no path.

    Args:
        path: the file.
        modules: see `Recorder`; none: the NICs' drivers.
        live: whether the file can be looked into while the guest runs; only one may run at a time then.
    """
    if path is None:
        yield None
        return
    if not path.name or not path.absolute().parent.is_dir():
        raise VmError(f"coverage cannot be written to '{path}': there is no such folder")
    recorder = Recorder(modules or None, path if live else None)
    try:
        yield recorder
    finally:
        coverage = recorder.coverage()
        if coverage.modules:  # else no guest has been started
            coverage.save(path)


class _Recording:
    """One guest's."""

    def __init__(self, live: LiveFile, modules: Sequence[tuple[Module, str]]) -> None:
        self._live = live
        self._modules = modules
        self._entered: dict[str, NDArray[np.int64]] = {}

    def take(self, context: str) -> None:
        """What has run since the last time counts for this context."""
        entered = self._live.take()
        before = self._entered.get(context, np.zeros(0, np.int64))
        entered[: len(before)] += before
        if entered.any():
            self._entered[context] = entered

    def forget(self) -> None:
        self._live.take()
        self._entered.clear()

    def coverage(self) -> Coverage:
        return mapped(self._live, self._modules, self._entered)


def mapped(live: LiveFile, modules: Sequence[tuple[Module, str]], entered: Mapping[str, NDArray[np.int64]]) -> Coverage:
    """What has run, found in the modules.

    Args:
        live: the shared file: its blocks, and what the host has said of it.
        modules: and the files of those that are the user's own.
        entered: how often each block was entered, by context.
    """
    counts = live.read()
    found = Coverage(lost=counts.lost)
    for module, file in modules:
        places, _ = module.locate(counts.blocks)
        record = found.module(module.name, module.build_id, live.about["release"], file)
        for context, numbers in entered.items():
            blocks: dict[tuple[int, int], int] = {}
            for number in np.flatnonzero((numbers > 0) & (places[: len(numbers)] >= 0)).tolist():
                block = int(places[number]), int(counts.blocks["size"][number])
                blocks[block] = blocks.get(block, 0) + int(numbers[number])
            record.add(context, blocks)
    return found


def load(path: Path, named: Sequence[Path] = ()) -> Coverage:
    """From a coverage file, or from the one that QEMU shares while its guest runs, or if it was killed.

    Args:
        path: the file.
        named: files of modules, for those that are not in the cache.

    Raises:
        VmError: it is neither, or damaged.
    """
    if not is_live(path):
        return Coverage.load(path)
    with LiveFile(path) as live:
        whole = Coverage()
        try:
            modules = []
            for about in live.about["modules"]:
                record = whole.module(about["name"], about["build_id"], live.about["release"], about["file"])
                modules.append((files.find(record, named), about["file"]))
        except (KeyError, TypeError):
            raise VmError(f"{path} does not say which modules it is about: it is damaged") from None
        entered: dict[str, Any] = {"": live.read().entered}
        whole.add(mapped(live, modules, entered))
        return whole if live.about.get("named") else _that_ran(whole)


def _that_ran(coverage: Coverage) -> Coverage:
    """Without the modules of which nothing has run, unless that is all: of the NICs' drivers a guest may have one."""
    ran = {identity: record for identity, record in coverage.modules.items() if record.contexts}
    return Coverage(ran or coverage.modules, coverage.lost)
