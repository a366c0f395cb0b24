"""A driver under work: a folder with its sources, compiled as modules for a stock kernel.

Sources are copied into a tree with Debian's compiler and the kernel's headers, and are never written to. The tree is
kept: kbuild finds there what it made last time, and compiles only what depends on files whose content has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nicmodel.cache import cache_dir
from nicmodel.vm import host
from nicmodel.vm.compiler import COMPILER, enter, kernel_headers, link_tree
from nicmodel.vm.errors import VmError
from nicmodel.vm.image import DEFAULT_KERNEL, Kernel
from nicmodel.vm.packages import building, locked, obtain, write_whole
from nicmodel.vm.progress import step
from nicmodel.vm.qemu import spawn

KEPT = 8
"""How many drivers' trees are kept (about 40 MB each, the objects); those that were not used for longest go."""

#: What is no source: results of a build in the folder itself, for another kernel perhaps; hidden files.
_NO_SOURCE = re.compile(r"\..*|.*\.(o|a|ko|mod|mod\.c|symvers|order)")
#: Nobody's driver is larger; a whole kernel, or somebody's home folder, is.
_MAX_FILES, _MAX_BYTES = 2000, 64 << 20

#: Where the sources are in the tree. Not at their own path, which may have characters that make does not bear.
_PLACE = "build"
#: The file that says by which command the modules in the tree were made from the sources that are there.
_MADE = "made.json"
#: Seconds for make.
_LIMIT = 900
#: What make says besides the messages of the compiler.
_NOISE = re.compile(r"make(\[\d+\])?: (Entering|Leaving) directory|make(\[\d+\])?: \*\*\* (\[.*\] Error \d+|Waiting )")
_COMPILED = re.compile(r"  CC \[M\] +(?P<object>\S+)")


class BuildError(VmError):
    """A driver does not compile; the text is what the compiler says."""


@dataclass(frozen=True)
class Built:
    """A driver that was compiled.

    Attributes:
        modules: Its modules, in the order of its Makefile.
        compiled: The sources that were compiled this time, relative to the driver's folder.
        said: The compiler's warnings; empty if there are none.
    """

    modules: tuple[Path, ...]
    compiled: tuple[str, ...]
    said: str


class Driver:
    """A driver's folder, and its tree in the cache.

    Args:
        folder: With a Makefile or Kbuild, as below drivers/net in Linux or as for a module of its own.
        kernel: What it is compiled for.
        variables: Given to make, such as ``{"KCFLAGS": "-DDEBUG"}``.

    Raises:
        VmError: There is no such folder, it has no Makefile, or nothing can be compiled on this host.
    """

    def __init__(
        self, folder: Path, kernel: Kernel = DEFAULT_KERNEL, variables: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise VmError(f"{folder}: there is no such folder")
        if not any((folder / name).is_file() for name in ("Makefile", "Kbuild")):
            raise VmError(
                f"{folder} has neither Makefile nor Kbuild: give the folder whose Makefile says 'obj-m += NAME.o', or"
                " 'obj-$(CONFIG_NAME) += NAME.o' as in the kernel's own drivers"
            )
        self._variables = dict(variables or {})
        self._compiler = obtain(COMPILER)
        self.version, self._headers = kernel_headers(kernel)
        subject = repr((str(folder.resolve()), self._compiler.id, self._headers.id))
        key = hashlib.sha256(subject.encode()).hexdigest()[:12]
        name = re.sub(r"[^\w.-]", "_", folder.resolve().name)
        self._tree = cache_dir() / "drivers" / f"{name}-{key}"
        self._lock = self._tree.with_suffix(".lock")

    def build(self) -> Built:
        """Compile what has changed, and wait for it.

        Raises:
            BuildError: It does not compile.
            VmError: There is no module in it, or the build takes too long.
        """
        with step(f"compiling {self.folder}"), self.start() as running:
            return running.wait()

    @contextmanager
    def start(self) -> Iterator[Building]:
        """Begin to compile what has changed; what is not finished at the end of the block is given up.

        Raises:
            VmError: The folder is no driver's, or cannot be read.
        """
        with locked(self._lock, f"its build of {self.folder}"):
            self._prepare()
            self._copy()
            with Building(self.folder, self._tree, self.version, self._words()) as running:
                yield running

    def smaller(self, module: Path) -> bytes:
        """A module without what only debuggers read: a twentieth, which the guest takes the sooner."""
        with tempfile.NamedTemporaryFile() as file:
            strip = self._compiler.command("usr/bin/strip", "--strip-debug", "-o", file.name, str(module))
            host.run(strip, f"{module.name} for the guest", cache_dir())
            return Path(file.name).read_bytes()

    def _words(self) -> list[str]:
        """Make's command, in the tree."""
        words = ["make", f"--jobs={len(os.sched_getaffinity(0))}", "--output-sync=target"]
        words += ["-C", f"/usr/src/linux-headers-{self.version}", f"M=/{_PLACE}", "modules", "CC=gcc"]
        # Without pahole no type information can be made from the module, and its version is not to be compared with.
        words += ["CONFIG_DEBUG_INFO_BTF_MODULES=", "CONFIG_PAHOLE_VERSION=0"]
        return words + [f"{name}={value}" for name, value in self._variables.items()]

    def _prepare(self) -> None:
        """Have the tree of compiler and headers."""
        with building(self._tree) as unfinished:
            if unfinished:
                host.require(host.building())
                link_tree(self._compiler.path, unfinished)
                link_tree(self._headers.path, unfinished)
                (unfinished / "usr/bin/awk").symlink_to("mawk")  # as mawk's installation would
                # objtool insists on knowing where its stack ends, and there is no /proc here.
                (unfinished / "proc/self").mkdir(parents=True)
                (unfinished / "proc/self/maps").write_text("7ffffffde000-7ffffffff000 [stack]\n")
        os.utime(self._tree)
        _prune(self._tree)

    def _copy(self) -> None:
        """Have the tree's copy of the sources be what the sources are now. What is the same keeps its time."""
        copies, record = self._tree / _PLACE, self._tree / "sources.json"
        sources = _sources(self.folder)
        known = set(json.loads(record.read_text("utf-8"))) if record.exists() else set()
        if not known or known - set(sources):
            # Begin anew: make would take an object without a source for one that is up to date.
            shutil.rmtree(copies, ignore_errors=True)
        write_whole(record, json.dumps(sorted(sources)))
        for name, content in sources.items():
            copy = copies / name
            if not copy.exists() or copy.read_bytes() != content:
                (self._tree / _MADE).unlink(missing_ok=True)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content)
                copy.chmod(0o755 if os.access(self.folder / name, os.X_OK) else 0o644)


class Building:
    """A build that runs. Use it as a context manager, which ends it.

    Args:
        folder: The driver's.
        tree: The tree.
        version: The kernel's.
        words: Make's command. If it is the one that has made what is there from the same sources, it is not run.
    """

    def __init__(self, folder: Path, tree: Path, version: str, words: Sequence[str]) -> None:
        self._folder, self._tree, self._version, self._words = folder, tree, version, list(words)
        self._made = tree / _MADE

    def __enter__(self) -> Self:
        self._process: subprocess.Popen[str] | None = None
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        if not (self._made.exists() and json.loads(self._made.read_text("utf-8")) == self._words):
            self._made.unlink(missing_ok=True)
            # Nothing of this process's environment, which may be a make of its own: its flags would be obeyed.
            command = [host.program("env"), "-i", "PATH=/usr/bin", "LC_ALL=C", *enter(self._tree), *self._words]
            self._process = spawn(command, stdout=self._said, stderr=subprocess.STDOUT, process_group=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kill()
        self._said.close()

    def _kill(self) -> None:
        """End make and its compilers."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wait(self) -> Built:
        """Wait for the end.

        Raises:
            BuildError: It does not compile.
            VmError: There is no module in it, or it takes too long.
        """
        try:
            status = self._process.wait(_LIMIT) if self._process else 0
        except subprocess.TimeoutExpired:
            raise VmError(f"the build of {self._folder} was ended after {_LIMIT} s") from None
        self._said.seek(0)
        said = self._said.read()
        if status and (full := host.is_full(said, self._tree)):
            raise VmError(f"{self._folder} could not be built: {full}")
        messages = self._messages(said)
        if status:
            raise BuildError(messages or f"make ended with status {status}, and said nothing")
        modules = self._modules()
        write_whole(self._made, json.dumps(self._words))
        return Built(modules, tuple(self._sources_of(said)), messages)

    def _messages(self, said: str) -> str:
        """What the compiler says, with the paths of the driver's own folder."""
        lines = [line for line in said.splitlines() if not _NOISE.match(line) and not re.match(r"  [A-Z]+ ", line)]
        return "\n".join(self._placed(line) for line in lines).strip()

    def _placed(self, line: str) -> str:
        """A line of the compiler's, in which files of the driver are named as they are from here."""
        found = re.match(r"((?:In file included from |\s+from )?)([^\s:]+)(?=[:,])", line)
        if not found:
            return line
        name = os.path.normpath(found[2].removeprefix(f"/{_PLACE}/"))
        if name.startswith(("/", "..")) or not (self._folder / name).is_file():
            return line
        return f"{found[1]}{self._folder / name}{line[found.end() :]}"

    def _sources_of(self, said: str) -> Iterator[str]:
        for line in said.splitlines():
            if found := _COMPILED.match(line):
                source = Path(found["object"].removeprefix(f"/{_PLACE}/")).with_suffix(".c")
                if (self._folder / source).is_file():  # kbuild compiles files of its own, too
                    yield str(source)

    def _modules(self) -> tuple[Path, ...]:
        """What kbuild has made.

        Raises:
            VmError: It had nothing to make.
        """
        order = (self._tree / _PLACE / "modules.order").read_text("utf-8").split()
        names = [Path(line.removeprefix(f"/{_PLACE}/")).with_suffix(".ko") for line in order]
        if not names:
            raise VmError(f"{self._folder} was built, but has no module{self._why_none()}")
        return tuple(self._tree / _PLACE / name for name in names)

    def _why_none(self) -> str:
        """Which option of the kernel's configuration its Makefile asks for in vain."""
        makefile = next(path for name in ("Kbuild", "Makefile") if (path := self._folder / name).is_file())
        config = self._tree / f"usr/src/linux-headers-{self._version}/include/config/auto.conf"
        for option in re.findall(r"obj-\$\((CONFIG_\w+)\)", makefile.read_text("utf-8", "replace")):
            found = re.search(rf"^{option}=(.*)$", config.read_text("utf-8"), re.MULTILINE)
            return (
                f": its {makefile.name} says obj-$({option}), and Linux {self._version} has {option} "
                f"{'off' if found is None else f'={found[1]}'}. With --make {option}=m it is built all the same"
            )
        return f": its {makefile.name} names none; write 'obj-m += NAME.o'"


def _sources(folder: Path) -> dict[str, bytes]:
    """The files of a driver by their names below its folder.

    Raises:
        VmError: There are more than any driver has.
    """
    found: dict[str, bytes] = {}
    size = 0
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _NO_SOURCE.fullmatch(name))
        for name in files:
            path = Path(where, name)
            if _NO_SOURCE.fullmatch(name) or not path.is_file():
                continue
            with suppress(FileNotFoundError):  # an editor's, which is gone already
                size += path.stat().st_size
                if len(found) >= _MAX_FILES or size > _MAX_BYTES:
                    raise VmError(
                        f"{folder} has more than {_MAX_FILES} files or {_MAX_BYTES >> 20} MiB:"
                        " give the folder of one driver"
                    )
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def _prune(used: Path) -> None:
    """Delete the trees of drivers that were not built for longest, except `used` and those that are being built."""
    trees = [path for path in used.parent.iterdir() if path.is_dir() and path != used]
    trees.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for tree in trees[KEPT - 1 :]:
        with tree.with_suffix(".lock").open("w") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(tree, ignore_errors=True)
