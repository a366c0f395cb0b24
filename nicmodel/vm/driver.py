"""A driver under work: a folder with its sources, compiled as modules for a kernel.

Sources are copied into a tree with Debian's compiler and the kernel's headers, and are never written to. The tree is
kept: kbuild finds there what it made last time, and compiles only what depends on files whose content has changed.
For a kernel of the user's own the compiler is this host's, which has built the kernel as well.

The kernel's make reads the folder, as it reads its own drivers'. Many drivers that live outside of the kernel have a
Makefile that does more before: it is run itself if the user says so, in a tree that looks like a host with that kernel.
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

from nicmodel.cache import by_last_use, cache_dir
from nicmodel.vm import host
from nicmodel.vm.compiler import COMPILER, USUAL_PROGRAMS, enter, furnish, pose_as
from nicmodel.vm.errors import VmError
from nicmodel.vm.kernel import Kernel, module_name
from nicmodel.vm.packages import HOST_ARCHITECTURE, Packages, Tree, building, locked, obtain, write_whole
from nicmodel.vm.progress import step
from nicmodel.vm.qemu import spawn
from nicmodel.vm.resources import processors

KEPT = 8
"""How many drivers' trees are kept (about 40 MB each, the objects); those that were not used for longest go.

Those of drivers in the folder for temporary files, as tests have them, are counted apart: they take nobody's tree.
"""

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
#: What names modules, in a Makefile that kbuild reads.
_NAMES_MODULES = re.compile(r"^\s*obj-\S+\s*[:+]?=", re.MULTILINE)
#: Commands of a Makefile that call make, by which it does more than kbuild would.
_CALLS_MAKE = re.compile(r"^\t.*(\$[({]MAKE[)}]|\bmake\b)", re.MULTILINE)
#: Folders deep, and folders, in which a Makefile is looked for that the user may have meant.
_DEEP, _MOST = 3, 3


class BuildError(VmError):
    """A driver does not compile, or nothing comes of it; the text is what the compiler says, or why."""


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
        own_makefile: Run the folder's Makefile itself, not the kernel's on the folder. To it this is a host that runs
            that kernel, unless it is one of the user's own: then `variables` have to say where it is.

    Raises:
        VmError: There is no such folder, it has no Makefile, or nothing can be compiled for that kernel.
    """

    def __init__(
        self, folder: Path, kernel: Kernel, variables: Mapping[str, str] | None = None, *, own_makefile: bool = False
    ) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise VmError(f"{folder}: there is no such folder")
        if not any((folder / name).is_file() for name in ("Makefile", "Kbuild")):
            below = _drivers_below(folder)
            raise VmError(
                f"{folder} has neither Makefile nor Kbuild: give the folder whose Makefile says 'obj-m += NAME.o', or"
                " 'obj-$(CONFIG_NAME) += NAME.o' as in the kernel's own drivers"
                + (f"; there is one in {', '.join(map(str, below))}" if below else "")
            )
        if not kernel.arch.is_hosts:
            raise VmError(
                f"modules are compiled for {HOST_ARCHITECTURE} only, and the kernel {kernel.name} is for"
                f" {kernel.arch.name}: compile yours by a cross compiler, and load it by 'nicmodel vm --module FILE'"
            )
        self._variables = dict(variables or {})
        self._compiler: Tree | None = None
        self._packed: list[Tree] = []
        if isinstance(kernel.headers, Packages | Tree):
            packed = kernel.headers if isinstance(kernel.headers, Tree) else obtain(kernel.headers)
            self._compiler, self._packed = obtain(COMPILER), [packed]
            if own_makefile:
                self._packed.append(obtain(USUAL_PROGRAMS))
            headers = f"/usr/src/linux-headers-{kernel.release}"
            identity = [tree.id for tree in (self._compiler, *self._packed)]
            if isinstance(kernel.headers, Tree):  # the headers of a kernel that is built again have the same name
                identity.append(kernel.id)
        elif kernel.headers is not None:
            for program in ("make", "strip"):
                host.program(program)
            headers, identity = str(kernel.headers.resolve()), [kernel.id, *(["own Makefile"] if own_makefile else [])]
        else:
            raise VmError(
                f"there is nothing to compile modules for {kernel.name} with: give the folder in which it was built"
                f" (--kernel), or install its headers as /lib/modules/{kernel.release}/build"
            )
        key = hashlib.sha256(repr((str(folder.resolve()), identity)).encode()).hexdigest()[:12]
        name = re.sub(r"[^\w.-]", "_", folder.resolve().name)
        temporary = folder.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve())
        self._tree = cache_dir() / ("temporary-drivers" if temporary else "drivers") / f"{name}-{key}"
        self._lock = self._tree.with_suffix(".lock")
        self._record = self._tree / "sources.json"
        self._site = _Site(folder, self._tree, self._compiler is not None, headers, kernel, own_makefile)

    def build(self) -> Built:
        """Compile what has changed, and wait for it.

        Raises:
            BuildError: It does not compile, there is no module in it, or it takes too long.
        """
        with step(f"compiling {self.folder}"), self.start() as running:
            return running.wait()

    @contextmanager
    def start(self) -> Iterator[Building]:
        """Begin to compile what has changed; what is not finished at the end of the block is given up.

        Raises:
            BuildError: The folder is no driver's.
        """
        with locked(self._lock, f"its build of {self.folder}"):
            self._prepare()
            self._copy()
            with Building(self._site, self._words()) as running:
                yield running

    def changed(self) -> list[str]:
        """Which sources are not what they were at the last build, by their names in the folder.

        Raises:
            BuildError: The folder is no driver's.
        """
        copies = self._tree / _PLACE
        sources = _sources(self.folder)
        gone = self._known() - set(sources)
        return sorted(gone.union(name for name, content in sources.items() if not _same(copies / name, content)))

    def located(self, text: str) -> str:
        """Lines of the kernel's log, with the place in the sources behind each address in a module of the driver's.

        An address is as call traces have it: `gve_probe+0x1b4/0x9a0 [gve]`.
        """
        addresses = re.compile(r"(?P<function>[\w.]+)\+0x(?P<offset>[0-9a-f]+)/0x[0-9a-f]+ \[(?P<module>\w+)\]")
        modules = {module_name(path.name): path for path in (self._tree / _PLACE).rglob("*.ko")}

        def place(found: re.Match[str]) -> str:
            module = modules.get(found["module"])
            # But for where it happened, a call trace has the addresses to return to, which lie behind the calls.
            here = re.search(r"RIP: | at $", found.string[: found.start()])
            offset = int(found["offset"], 16) - (0 if here else 1)
            where = self._place(module, found["function"], offset) if module else ""
            return f"{found[0]} ({where})" if where else found[0]

        return "\n".join(addresses.sub(place, line) for line in text.split("\n"))

    def _place(self, module: Path, function: str, offset: int) -> str:
        """File and line of an address in a function, in the driver's own sources; empty if it is unknown."""
        # objdump(1), --symbols: value, flags, section, a tab, size and name. Values count from the section's start.
        symbols = self._ask("objdump", "--syms", str(module))
        symbol = re.search(rf"^([0-9a-f]+) .* F (\S+)\t[0-9a-f]+ (?:\.hidden )?{re.escape(function)}$", symbols, re.M)
        if not symbol:
            return ""
        address = hex(int(symbol[1], 16) + offset)
        # Of a function that was inlined there, and of those that it is in, innermost first.
        places = self._ask("addr2line", "-i", "-e", str(module), "-j", symbol[2], address).splitlines()
        for line in places:
            name, _, number = line.partition(" ")[0].rpartition(":")
            source = os.path.normpath(name.removeprefix(f"{self._site.place}/"))
            if (self.folder / source).is_file() and not source.startswith("/"):
                return f"{self.folder / source}:{number}"
        return ""

    def _ask(self, program: str, *arguments: str) -> str:
        """What one of the compiler's programs prints; nothing if it fails."""
        done = subprocess.run(self._program(program, *arguments), capture_output=True, text=True, errors="replace")
        return done.stdout

    def _program(self, name: str, *arguments: str) -> list[str]:
        """How to run one of the compiler's programs."""
        return self._compiler.command(f"usr/bin/{name}", *arguments) if self._compiler else [name, *arguments]

    def smaller(self, module: Path) -> bytes:
        """A module without what only debuggers read: a twentieth, which the guest takes the sooner."""
        with tempfile.NamedTemporaryFile() as file:
            strip = self._program("strip", "--strip-debug", "-o", file.name, str(module))
            host.run(strip, f"{module.name} for the guest", cache_dir())
            return Path(file.name).read_bytes()

    def _words(self) -> list[str]:
        """Make's command, in the tree."""
        words = ["make", f"--jobs={processors()}", "--output-sync=target"]
        if self._site.own_makefile:
            words += ["-C", self._site.place]
        else:
            words += ["-C", self._site.headers, f"M={self._site.place}", "modules"]
        if self._compiler:
            # Its name is not the one that Debian's configuration has. And without pahole no type information can be
            # made from the module; its version is not to be compared with.
            words += ["CC=gcc", "CONFIG_DEBUG_INFO_BTF_MODULES=", "CONFIG_PAHOLE_VERSION=0"]
        variables = dict(self._variables)
        if "DEBUG_INFO" not in (self._site.kernel.config or {"DEBUG_INFO": "y"}):
            # Files and lines in call traces are told by it (`located`); a kernel that has it brings it along.
            variables["KCFLAGS"] = f"-g {variables.get('KCFLAGS', '')}".rstrip()
        return words + [f"{name}={value}" for name, value in variables.items()]

    def _prepare(self) -> None:
        """Have the tree of compiler and headers."""
        with building(self._tree) as unfinished:
            if unfinished and self._compiler and self._packed:
                host.require(host.building())
                furnish(unfinished, self._compiler.path, *(tree.path for tree in self._packed))
                if self._site.own_makefile:
                    pose_as(unfinished, self._site.kernel.release)
        os.utime(self._tree)
        _prune(self._tree)

    def _copy(self) -> None:
        """Have the tree's copy of the sources be what the sources are now. What is the same keeps its time."""
        copies = self._tree / _PLACE
        sources = _sources(self.folder)
        known = self._known()
        if not known or known - set(sources):
            # Begin anew: make would take an object without a source for one that is up to date.
            shutil.rmtree(copies, ignore_errors=True)
        write_whole(self._record, json.dumps(sorted(sources)))
        for name, content in sources.items():
            copy = copies / name
            if not _same(copy, content):
                (self._tree / _MADE).unlink(missing_ok=True)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content)
                copy.chmod(0o755 if os.access(self.folder / name, os.X_OK) else 0o644)

    def _known(self) -> set[str]:
        """The sources that the tree has copies of."""
        return set(json.loads(self._record.read_text("utf-8"))) if self._record.exists() else set()


@dataclass(frozen=True)
class _Site:
    """Where a driver is built.

    Attributes:
        folder: Its sources.
        tree: The tree, on this host.
        entered: Whether the tree is entered, and has a compiler.
        headers: The kernel's headers, as make finds them.
        kernel: The kernel.
        own_makefile: Whether the folder's own Makefile is run.
    """

    folder: Path
    tree: Path
    entered: bool
    headers: str
    kernel: Kernel
    own_makefile: bool

    @property
    def place(self) -> str:
        """The copy of the sources, as make finds it."""
        return f"/{_PLACE}" if self.entered else str(self.tree / _PLACE)


class Building:
    """A build that runs. Use it as a context manager, which ends it.

    Args:
        site: Where.
        words: Make's command. If it is the one that has made what is there from the same sources, it is not run.
    """

    def __init__(self, site: _Site, words: Sequence[str]) -> None:
        self._site, self._folder, self._tree, self._words = site, site.folder, site.tree, list(words)
        self._made = site.tree / _MADE

    def __enter__(self) -> Self:
        self._process: subprocess.Popen[str] | None = None
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        if not (self._made.exists() and json.loads(self._made.read_text("utf-8")) == self._words):
            self._made.unlink(missing_ok=True)
            # Nothing else of this process's environment: a make that it was called by would have its flags obeyed.
            path = "/usr/local/bin:/usr/bin" if self._site.entered else os.environ.get("PATH", os.defpath)
            inside = enter(self._tree) if self._site.entered else []
            command = [host.program("env"), "-i", f"PATH={path}", "LC_ALL=C", *inside, *self._words]
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
            BuildError: It does not compile, there is no module in it, or it takes too long.
        """
        try:
            status = self._process.wait(_LIMIT) if self._process else 0
        except subprocess.TimeoutExpired:
            raise BuildError(f"the build of {self._folder} was ended after {_LIMIT} s") from None
        self._said.seek(0)
        said = self._said.read()
        if status and (full := host.is_full(said, self._tree)):
            raise BuildError(f"{self._folder} could not be built: {full}")
        messages = self._messages(said)
        if status:
            raise BuildError((messages or f"make ended with status {status}, and said nothing") + self._hint(messages))
        modules = self._modules()
        write_whole(self._made, json.dumps(self._words))
        return Built(modules, tuple(self._sources_of(said)), messages)

    def _hint(self, messages: str) -> str:
        """What may help where a file is missing that the driver's Makefile would have made."""
        if self._site.own_makefile or "No such file" not in messages or not self._does_more():
            return ""
        return f"\n{self._folder}/Makefile does more than the kernel's make reads of it: --own-makefile runs it itself"

    def _does_more(self) -> bool:
        """Whether the driver's Makefile calls make, as one does that is to be run itself."""
        makefile = self._folder / "Makefile"
        return makefile.is_file() and bool(_CALLS_MAKE.search(makefile.read_text("utf-8", "replace")))

    def _messages(self, said: str) -> str:
        """What the compiler says, with the paths of the driver's own folder."""
        lines = [line for line in said.splitlines() if not _NOISE.match(line) and not re.match(r"  [A-Z]+ ", line)]
        return "\n".join(self._placed(line) for line in lines).strip()

    def _placed(self, line: str) -> str:
        """A line of the compiler's, in which files of the driver are named as they are from here."""
        found = re.match(r"((?:In file included from |\s+from )?)([^\s:]+)(?=[:,])", line)
        if not found:
            return line
        name = os.path.normpath(found[2].removeprefix(f"{self._site.place}/"))
        if name.startswith(("/", "..")) or not (self._folder / name).is_file():
            return line
        return f"{found[1]}{self._folder / name}{line[found.end() :]}"

    def _sources_of(self, said: str) -> Iterator[str]:
        for line in said.splitlines():
            if found := _COMPILED.match(line):
                source = Path(found["object"].removeprefix(f"{self._site.place}/")).with_suffix(".c")
                if (self._folder / source).is_file():  # kbuild compiles files of its own, too
                    yield str(source)

    def _modules(self) -> tuple[Path, ...]:
        """What kbuild has made, in the order of its Makefiles.

        Raises:
            BuildError: It had nothing to make.
        """
        place = self._tree / _PLACE
        # One for each folder that kbuild was called for, and, since Linux 5.3, for each one below it.
        lists = sorted(place.rglob("modules.order"), key=lambda path: len(path.parts))
        found: dict[Path, None] = {}
        for order in lists if self._site.own_makefile else lists[:1]:
            for line in order.read_text("utf-8").split():
                name = Path(line.removeprefix(f"{self._site.place}/")).with_suffix(".ko")
                for module in (place / name, order.parent / name):
                    if module.is_file():
                        found[module] = None
                        break
        if not found:
            raise BuildError(f"{self._folder} was built, but has no module{self._why_none()}")
        return tuple(found)

    def _why_none(self) -> str:
        """Which option of the kernel's configuration its Makefile asks for in vain."""
        if self._site.own_makefile:
            return ": its Makefile has called the kernel's make for none, or not for this kernel"
        makefile = next(path for name in ("Kbuild", "Makefile") if (path := self._folder / name).is_file())
        config = self._site.kernel.config or {}
        for option in re.findall(r"obj-\$\(CONFIG_(\w+)\)", makefile.read_text("utf-8", "replace")):
            set_to = f"={config[option]}" if option in config else "off"
            return (
                f": its {makefile.name} says obj-$(CONFIG_{option}), and Linux {self._site.kernel.release} has"
                f" CONFIG_{option} {set_to}. With --make CONFIG_{option}=m it is built all the same"
            )
        if self._does_more():
            return f": its {makefile.name} names none; --own-makefile runs it itself"
        return f": its {makefile.name} names none; write 'obj-m += NAME.o'"


def _drivers_below(folder: Path) -> list[Path]:
    """The first folders below this one whose Makefile or Kbuild names modules: what may have been meant."""
    found = []
    for where, folders, files in os.walk(folder):
        inside = Path(where).relative_to(folder)
        folders[:] = sorted(name for name in folders if not _NO_SOURCE.fullmatch(name) and len(inside.parts) < _DEEP)
        makefiles = [Path(where, name) for name in ("Makefile", "Kbuild") if name in files]
        if any(_NAMES_MODULES.search(path.read_text("utf-8", "replace")) for path in makefiles if path.is_file()):
            found.append(Path(where))
            if len(found) == _MOST:
                break
    return found


def _sources(folder: Path) -> dict[str, bytes]:
    """The files of a driver by their names below its folder.

    Raises:
        BuildError: There are more than any driver has.
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
                    raise BuildError(
                        f"{folder} has more than {_MAX_FILES} files or {_MAX_BYTES >> 20} MiB:"
                        " give the folder of one driver"
                    )
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def _same(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content


def _prune(used: Path) -> None:
    """Delete the trees of drivers that were not built for longest, except `used` and those that are being built."""
    trees = [path for path in by_last_use(used.parent) if path != used]
    for tree in trees[KEPT - 1 :]:
        with tree.with_suffix(".lock").open("w") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(tree, ignore_errors=True)
