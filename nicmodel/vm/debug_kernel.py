"""The debug kernel: one that looks for mistakes of drivers, built here from Debian's source or a tree of the user's.

Debian's kernels have none of what finds such mistakes. What this one has is said by the fragments of configuration in
`guest/kernel`; all else is as the kernel has it by default. It is compiled in the compiler's tree: this host needs no
compiler, and its /boot is not touched.

As with trees of packages, a kernel that has been built is used as it is. What it was built of moves only when asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nicmodel.cache import by_last_use, cache_dir
from nicmodel.installation import data_folder
from nicmodel.vm import host
from nicmodel.vm.arch import AMD64, Arch
from nicmodel.vm.compiler import COMPILER, enter, furnish
from nicmodel.vm.errors import VmError
from nicmodel.vm.kernel import DEBUG, DEFAULT_KERNEL, Kernel, OwnKernel, options_set
from nicmodel.vm.packages import Packages, Tree, building, locked, obtain, recorded, write_whole
from nicmodel.vm.progress import step
from nicmodel.vm.qemu import spawn
from nicmodel.vm.resources import processors
from nicmodel.vm.tools import default_source, is_object, source_archive, source_release, unpack

FRAGMENTS = data_folder("guest") / "kernel"
"""Folder of the fragments: what guests need, what finds mistakes."""

KERNEL_TOOLS = Packages(
    "kernel-tools",
    ("flex", "bison", "bc", "libelf-dev", "mawk", "gzip", "diffutils", "perl-base"),
    suite=COMPILER.suite,
    keep=r"flex|bison|bc$|m4|mawk|gzip|diffutils|perl-base|libelf|(zlib1g|libzstd)-dev",
)
"""What a kernel is built with, besides the compiler: 6 MB."""

ROOM = 3 << 30
"""Free space that a build needs: the source has 1.7 GB, what is made of it 0.3 GB, and both go when it is done."""

KEPT = 3
"""How many kernels are kept, and how many builds that were interrupted; those that were not used for longest go."""

#: Raised when the same sources and fragments give another kernel than before.
_RECIPE = 1
#: Lines that make says in a whole build, to show how far it is.
_LINES = 2500
#: Seconds for one call of make: far more than a build takes on one slow core.
_LIMIT = 6 * 3600
#: Seconds for make to delete what it has half written.
_GRACE = 10
#: Who has built it, as the kernel's banner says: not this host's name, and not a time, by which all files would differ.
_WORDS = ("KBUILD_BUILD_USER=nicmodel", "KBUILD_BUILD_HOST=nicmodel", "KBUILD_BUILD_TIMESTAMP=2026-01-01")
#: What is no source in a tree: hidden files, what `make` has left there.
_NO_SOURCE = re.compile(r"\..*|.*\.(o|a|ko|mod|order)")
_GENERATED = re.compile(r"include/(generated|config)|arch/\w+/include/generated|debian")


@dataclass(frozen=True)
class DebugKernel:
    """The choice of the debug kernel.

    Attributes:
        source: A kernel's source of the user's own; None: that of the default kernel's package.
        arch: The architecture.
    """

    source: Path | None = None
    arch: Arch = AMD64

    @property
    def name(self) -> str:
        """What the user calls it."""
        return f"{DEBUG}:{self.source}" if self.source else DEBUG

    def find(self, *, update: bool = False) -> Kernel:
        """The kernel as it was built.

        Args:
            update: Makes no difference: `build` has that.

        Raises:
            VmError: It was not built.
        """
        tree = recorded(self._record)
        if not tree:
            words = shlex.join(["nicmodel", "kernel", "build", *([str(self.source)] if self.source else [])])
            raise VmError(
                f"the kernel '{self.name}' is not built yet, or another version of nicmodel has configured it:"
                f" '{words}' builds it, in half an hour of one core"
            )
        os.utime(tree.path)
        folder = next((tree.path / "usr/lib/modules").iterdir())
        found = OwnKernel(folder).find()
        headers = Tree(tree.path / f"headers-{tree.id}", tree.versions)
        return replace(found, name=self.name, headers=headers, advice="add it to guest/kernel/guest.config")

    @property
    def key(self) -> str:
        """Name in the cache: differs whenever the request differs."""
        request = [_RECIPE, self.origin, fragments()]
        return f"{DEBUG}-{hashlib.sha256(json.dumps(request).encode()).hexdigest()[:8]}"

    @property
    def origin(self) -> str:
        """The folder of the user's own source; empty if there is none."""
        return str(self.source.expanduser().resolve()) if self.source else ""

    @property
    def _record(self) -> Path:
        return _folder() / f"{self.key}.json"


def _folder() -> Path:
    return cache_dir() / "kernels"


def fragments() -> str:
    """The fragments, one after the other."""
    return "".join(file.read_text("utf-8") for file in sorted(FRAGMENTS.glob("*.config")))


def options(text: str) -> dict[str, str]:
    """The options that a configuration or fragment sets, by name without CONFIG_. Those that it switches off are n."""
    return dict.fromkeys(re.findall(r"^# CONFIG_(\w+) is not set$", text, re.MULTILINE), "n") | options_set(text)


def dropped(wanted: Mapping[str, str], config: Mapping[str, str]) -> list[str]:
    """Options of fragments that are not what the fragments say in the configuration that was made of them, in words.

    Kconfig says nothing of an option whose dependencies are off, of one that does not exist (any more), and of one that
    another switches on.
    """
    return [
        f"CONFIG_{name}={value} (it is {config.get(name, 'n')})"
        for name, value in wanted.items()
        if config.get(name, "n") != value
    ]


@dataclass(frozen=True)
class Built:
    """What `build` has done.

    Attributes:
        kernel: The kernel.
        seconds: How long it took; 0 if it was there.
        dropped: Options of the fragments that the source does not have, of a tree of the user's own.
    """

    kernel: Kernel
    seconds: float
    dropped: tuple[str, ...] = ()


def build(choice: DebugKernel, *, jobs: int = 0, update: bool = False, fresh: bool = False) -> Built:
    """Build the debug kernel, unless it is in the cache.

    A build that was interrupted goes on where it was. That of a tree of the user's own compiles what has changed there.

    Args:
        choice: Which.
        jobs: How many files are compiled at once; 0: one for each processor.
        update: Look for newer packages of source and compiler first.
        fresh: Begin anew, whatever is there.

    Raises:
        VmError: It cannot be built; the text says why.
    """
    started = time.monotonic()
    if choice.source:
        source_release(Path(choice.origin))
    host.require(host.programs(), host.cache(), host.building())
    if update:
        obtain(DEFAULT_KERNEL.packages, update=True)
    trees = [obtain(COMPILER, update=update), obtain(KERNEL_TOOLS, update=update)]
    if not choice.source:
        source, package = default_source()
        trees.append(source)
    ids = hashlib.sha256(repr([choice.origin, *(tree.id for tree in trees)]).encode()).hexdigest()[:8]
    path = _folder() / f"{choice.key}-{ids}"
    with locked(_folder() / f"{ids}.lock", "its build of a kernel") as lock:
        if path.exists() and (choice.source or fresh):
            shutil.rmtree(path)
        lacking: list[str] = []
        with building(path) as unfinished:
            if unfinished:
                # Without the fragments: if they have changed, make knows what is to be compiled again.
                site = _Site(_folder() / f"building-{ids}", lock, jobs or processors())
                if fresh:
                    shutil.rmtree(site.folder, ignore_errors=True)
                _prune("building-", [site.folder])
                site.prepare(trees[:2])
                if choice.source:
                    site.copy(Path(choice.origin))
                else:
                    site.unpack(source_archive(source, package), package)
                lacking = site.configure(strict=not choice.source)
                site.make()
                site.install(unfinished, path.name)
                if not choice.source:
                    shutil.rmtree(site.folder)
        versions = {name: version for tree in trees for name, version in tree.versions.items()}
        # As that of packages (`nicmodel.vm.packages`): what makes the kernel valid, written last.
        write_whole(choice._record, json.dumps({"tree": path.name, "versions": versions}, indent=1))
        _prune(f"{DEBUG}-", [path])
    return Built(choice.find(), time.monotonic() - started if unfinished else 0, tuple(lacking))


def _prune(prefix: str, used: Sequence[Path]) -> None:
    """Delete the kernels, or builds, that were not used for longest."""
    others = [path for path in by_last_use(_folder()) if path.name.startswith(prefix) and path not in used]
    for path in others[KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class _Site:
    """Where a kernel is built.

    Attributes:
        folder: The folder; it stays when the build is interrupted.
        lock: Descriptor of the lock, which all that make starts holds, too: what outlives a process of this program
            that was killed is waited for.
        jobs: For make.
    """

    folder: Path
    lock: int
    jobs: int

    @property
    def root(self) -> Path:
        """What is entered: the compiler's tree with the kernel's source in /source, built in /build."""
        return self.folder / "root"

    @property
    def log(self) -> Path:
        """All that make has said."""
        return self.folder / "build.log"

    def prepare(self, trees: Sequence[Tree]) -> None:
        """Have the tree to build in."""
        with building(self.folder) as unfinished:
            if unfinished:
                host.require(host.room(ROOM))
                furnish(unfinished / "root", *(tree.path for tree in trees))
                (unfinished / "root/build").mkdir()
        os.utime(self.folder)

    def unpack(self, archive: Path, package: str) -> None:
        """Have the source of a package."""
        with building(self.root / "source") as unfinished:
            if unfinished:
                with step("unpacking the kernel's source"):
                    unpack(archive, unfinished, [package])

    def copy(self, tree: Path) -> None:
        """Have the source be that of a tree of the user's own. What is the same keeps its time: make judges by it."""
        with step(f"copying the source in {tree}"):
            target = self.root / "source"
            wanted = set()
            for file in _sources(tree):
                place = target / file.relative_to(tree)
                wanted.add(place)
                if not _same(file, place):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.unlink(missing_ok=True)
                    shutil.copy2(file, place, follow_symlinks=False)
            for folder, _, names in os.walk(target):
                for name in names:
                    if (left := Path(folder, name)) not in wanted:
                        left.unlink()

    def configure(self, *, strict: bool) -> list[str]:
        """Make the configuration; the options of the fragments that it lacks.

        Raises:
            VmError: It lacks some, and it is `strict`.
        """
        text = fragments()
        write_whole(self.root / "build/fragments.config", text)
        with step("configuring the kernel"):
            self._make("KCONFIG_ALLCONFIG=/build/fragments.config", "alldefconfig")
        lacking = dropped(options(text), options((self.root / "build/.config").read_text("utf-8")))
        if lacking and strict:
            raise VmError(
                f"the kernel's configuration has not taken all that {FRAGMENTS} asks for: {', '.join(lacking)}."
                " Take them out, or see in 'make menuconfig' what each depends on"
            )
        return lacking

    def make(self) -> None:
        """Build image and modules."""
        done = self.log.read_text("utf-8").count("\n  ")  # before it was interrupted
        with step(f"building the kernel, {self.jobs} files at a time: half an hour of one core, and once") as advance:

            def told(line: str) -> None:
                nonlocal done
                done += line.startswith("  ")
                advance(min(99, 100 * done / _LINES))

            self._make(f"--jobs={self.jobs}", "all", told=told)

    def install(self, target: Path, name: str) -> None:
        """Put what has been built where it stays, as Debian's packages have it: image, modules, and headers."""
        with step("installing the kernel in the cache"):
            release = (self.root / "build/include/config/kernel.release").read_text("utf-8").strip()
            self._make("INSTALL_MOD_PATH=/installed/usr", "DEPMOD=true", "modules_install")
            headers = f"/installed/headers-{name}/usr/src/linux-headers-{release}"
            # What Debian's and others' packages of headers are made by.
            script = f"${{srctree}}/scripts/package/install-extmod-build {headers}"
            self._make("run-command", f"KBUILD_RUN_COMMAND={script}")
            modules = self.root / "installed/usr/lib/modules" / release
            for link in ("build", "source"):
                (modules / link).unlink(missing_ok=True)
            for file, place in (("arch/x86/boot/bzImage", "vmlinuz"), (".config", "config")):
                shutil.copy2(self.root / "build" / file, modules / place)
            # Modules are built in a tree of compiler and headers: objtool, which is there, needs it besides.
            for library in self.root.glob("usr/lib/*/libelf*.so*"):
                copy = self.root / f"installed/headers-{name}" / library.relative_to(self.root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(library, copy, follow_symlinks=False)
            for product in (self.root / "installed").iterdir():
                product.rename(target / product.name)

    def _make(self, *words: str, told: Callable[[str], None] = lambda line: None) -> None:
        """Run make, and tell each line that it says.

        Raises:
            VmError: It fails, or takes too long.
        """
        words = ("make", "-C", "/source", "O=/build", *_WORDS, *words)
        # Nothing else of this process's environment: a make that it was called by would have its flags obeyed.
        command = [host.program("env"), "-i", "PATH=/usr/bin", "LC_ALL=C", *enter(self.root), *words]
        process = spawn(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                        process_group=0, pass_fds=[self.lock])  # fmt: skip
        late = threading.Timer(_LIMIT, _end, [process])
        late.start()
        said = []
        try:
            with self.log.open("a", buffering=1, encoding="utf-8") as log:
                for line in process.stdout or ():
                    log.write(line)
                    said.append(line)
                    told(line)
            status = process.wait()
        finally:
            late.cancel()
            _end(process)
            if process.stdout:
                process.stdout.close()
        if status:
            if full := host.is_full("".join(said[-200:]), self.folder):
                raise VmError(f"the kernel could not be built: {full}. What has been done stays: build again then")
            wrong = [line for line in said if re.search(r"error|\*\*\*|Error|not found", line)] or said
            raise VmError(f"the kernel could not be built ({self.log} has all):\n{''.join(wrong[-20:]).rstrip()}")


def _end(process: subprocess.Popen[str]) -> None:
    """End make and its compilers, if they still run. Asked to, make deletes what is half written."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)


def _sources(tree: Path) -> Iterator[Path]:
    """The files of a kernel's source, without what was built there."""
    for folder, folders, names in os.walk(tree):
        at = Path(folder)
        links = [name for name in folders if (at / name).is_symlink()]
        inside = [name for name in folders if name not in links and not name.startswith(".")]
        folders[:] = sorted(name for name in inside if not _GENERATED.fullmatch(str((at / name).relative_to(tree))))
        for name in sorted([*names, *links]):
            file = at / name
            if not _NO_SOURCE.fullmatch(name) and (file.is_symlink() or (file.is_file() and not is_object(file))):
                yield file


def _same(file: Path, copy: Path) -> bool:
    """Whether a copy is what was copied, as far as sizes and times tell."""
    try:
        one, other = file.lstat(), copy.lstat()
    except FileNotFoundError:
        return False
    return (one.st_mode, one.st_size, one.st_mtime_ns) == (other.st_mode, other.st_size, other.st_mtime_ns)
