"""Trees of unpacked Debian packages, from the host's own mirror into the user's cache.

The host's apt does the work: it resolves dependencies, downloads, and checks signatures and hashes. It does so in a
private root below the cache folder (see apt.conf(5), `Dir`), so the host's own package state is read, never changed,
and no special rights are needed. What the host configured for downloads (proxies, certificates, credentials) applies.

A tree, once built, is used as it is: no network is needed again, and versions move only when asked (`update=True`).
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from nicmodel.cache import cache_dir
from nicmodel.vm import host
from nicmodel.vm.errors import VmError
from nicmodel.vm.progress import Advance, step

#: What a package takes for a while as a file and for good as a tree, in multiples of its size.
_GROWTH = 5
#: Free space without which a download is not begun: the package index takes this.
_WORKING_ROOM = 100 << 20

HOST_ARCHITECTURE = "amd64"
"""That of this host, as Debian calls it: guests and their QEMU run on x86-64."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Installed by package debian-archive-keyring, which every Debian has and Ubuntu offers."""


@dataclass(frozen=True)
class Packages:
    """A request: these packages, and what they depend on, unpacked into one tree.

    Attributes:
        name: What the tree is for, shown to the user and part of its folder's name.
        wanted: Names of packages, or `name=version` to pin one.
        suite: The Debian suite they come from. A `-backports` suite brings its base suite along.
        keep: If given, only packages whose name matches this regular expression are fetched, for a request whose
            dependencies are of no use in a tree (a kernel's, for example).
        architecture: Debian's name of the one that they are for.
    """

    name: str
    wanted: tuple[str, ...]
    suite: str = "trixie"
    keep: str = ""
    architecture: str = HOST_ARCHITECTURE

    @property
    def key(self) -> str:
        """Folder name: differs whenever the request differs."""
        foreign = [self.architecture] if self.architecture != HOST_ARCHITECTURE else []
        request = json.dumps([self.wanted, self.suite, self.keep, *foreign])
        return f"{self.name}-{hashlib.sha256(request.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Tree:
    """An unpacked tree.

    Attributes:
        path: The root of the tree; treat it as read-only.
        versions: Version by package name, as recorded when it was built.
    """

    path: Path
    versions: dict[str, str]

    @property
    def id(self) -> str:
        """Stands for exactly these packages in exactly these versions."""
        return self.path.name

    def command(self, program: str, *arguments: str) -> list[str]:
        """Argument vector that runs `program` (a path in the tree) on this host, whatever libraries the host has.

        The tree's own dynamic loader is started and told to look for libraries in the tree only, see ld.so(8).
        """
        loader = self.path / "usr/lib64/ld-linux-x86-64.so.2"
        libraries = self.path / "usr/lib/x86_64-linux-gnu"
        return [str(loader), "--library-path", str(libraries), str(self.path / program), *arguments]


def obtain(packages: Packages, *, update: bool = False) -> Tree:
    """The tree of `packages`: from the cache, else downloaded and unpacked.

    Args:
        packages: The request.
        update: Ask the mirror for newer versions even if the cache holds the tree.

    Raises:
        VmError: No mirror is known, it cannot be reached, or a signature is wrong.
    """
    trees = cache_dir() / "trees"
    record = trees / f"{packages.key}.json"
    if not update and (tree := recorded(record)):
        return tree
    host.require(host.programs(), host.cache(), host.room(_WORKING_ROOM))
    with locked(trees / f"{packages.key}.lock", f"the download of {packages.name}"):
        if not update and (tree := recorded(record)):
            return tree
        root = _AptRoot(packages.suite, packages.architecture)
        debs = [deb for deb in root.resolve(packages.wanted) if re.match(packages.keep, deb.name)]
        versions = {deb.name: deb.version for deb in debs}
        digest = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()
        path = trees / f"{packages.key}-{digest[:8]}"
        with building(path) as unfinished:
            if unfinished:
                size = sum(deb.size for deb in debs)
                host.require(host.room(_WORKING_ROOM + _GROWTH * size))
                with step(f"fetching {packages.name}: {len(debs)} packages, {size / 1e6:.0f} MB") as advance:
                    root.unpack(debs, unfinished, advance)
        # The record is what makes the tree valid: written last, and in one piece.
        write_whole(record, json.dumps({"tree": path.name, "suite": packages.suite, "versions": versions}, indent=1))
        return Tree(path, versions)


def obtain_file(package: str, suite: str, member: str) -> bytes:
    """One file of a package, for packages of which the rest is of no use here; neither is kept.

    Args:
        package: its name.
        suite: of Debian's, see `Packages`.
        member: path in the package, without a slash at its beginning.

    Raises:
        VmError: the suite has no such package, or the package no such file; or there is no room.
    """
    trees = cache_dir() / "trees"
    trees.mkdir(parents=True, exist_ok=True)
    host.require(host.programs(), host.cache(), host.room(_WORKING_ROOM))
    root = _AptRoot(suite, HOST_ARCHITECTURE)
    debs = [deb for deb in root.resolve((package,)) if deb.name == package]
    if not debs:
        raise VmError(f"Debian {suite} has no package {package}")
    size = debs[0].size
    host.require(host.room(_WORKING_ROOM + size))
    with workplace(trees) as folder:
        with step(f"fetching {package}: {size / 1e6:.0f} MB") as advance:
            file = root.download(debs, advance, folder)[0]
        with step(f"unpacking {member.rpartition('/')[2]} from it"):
            return _member(file, member)


def _member(deb: Path, member: str) -> bytes:
    """A file in a package; nothing behind it is unpacked."""
    command = [host.program("dpkg-deb"), "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for one in archive:
                    if one.isfile() and os.path.normpath(one.name) == member and (content := archive.extractfile(one)):
                        return content.read()
        except tarfile.TarError as error:
            raise VmError(f"{deb.name} cannot be unpacked: {error}") from None
        finally:
            process.kill()
    raise VmError(f"{deb.name} has no file {member}")


def obtained(packages: Packages) -> Tree | None:
    """The tree of `packages` if the cache has it."""
    return recorded(cache_dir() / "trees" / f"{packages.key}.json")


def recorded(record: Path) -> Tree | None:
    """The tree that a record speaks of, a file beside it; None if there is none."""
    try:
        content = json.loads(record.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    path = record.parent / content["tree"]
    return Tree(path, content["versions"]) if path.is_dir() else None


@contextmanager
def locked(path: Path, what: str) -> Iterator[int]:
    """Hold the lock file `path`; the kernel releases it if this process dies. Waits, and says so, if it is taken.

    Yields:
        A descriptor of it: a process that inherits it holds the lock, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"waiting for another process to finish {what}"):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


@contextmanager
def building(path: Path) -> Iterator[Path | None]:
    """Yield an empty folder that becomes `path` when the block ends well, or None if `path` is there already.

    The caller holds a lock.
    """
    if path.exists():
        yield None
        return
    with workplace(path.parent) as unfinished:
        yield unfinished
        unfinished.rename(path)


WORKPLACE = "making-"
"""What folders are called in which something is being made."""


@contextmanager
def workplace(parent: Path) -> Iterator[Path]:
    """A new empty folder in `parent`, deleted when the block ends; what has been renamed by then stays.

    What processes have left there that were killed is deleted first. A process has its folder locked, and the kernel
    releases the lock however the process ends.
    """
    parent.mkdir(parents=True, exist_ok=True)
    whole = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(whole, fcntl.LOCK_EX)  # so that nobody takes a folder for left that is not locked yet
        for left in parent.glob(f"{WORKPLACE}*"):
            _delete_if_left(left)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=WORKPLACE))
        folder.chmod(0o755)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        os.close(whole)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _delete_if_left(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # its maker has just finished
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # its maker is at work
    finally:
        os.close(lock)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    unfinished.rename(path)


@dataclass(frozen=True)
class _Deb:
    name: str
    version: str
    size: int


class _AptRoot:
    """A private apt root for one suite and architecture.

    Its package database is empty, so that dependencies come along in full.
    """

    def __init__(self, suite: str, architecture: str) -> None:
        self.suite = suite
        self.architecture = architecture
        self.path = cache_dir() / "apt" / (suite if architecture == HOST_ARCHITECTURE else f"{suite}-{architecture}")
        self.config = self.path / "apt.conf"
        (self.path / "state/lists/partial").mkdir(parents=True, exist_ok=True)
        (self.path / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
        (self.path / "status").touch()
        # With -c, this file is read after the host's configuration: it can take back what is not wanted.
        write_whole(
            self.config,
            f"""
            #clear APT::Update::Post-Invoke;
            #clear APT::Update::Post-Invoke-Success;
            Dir::State "{self.path}/state";
            Dir::State::status "{self.path}/status";
            Dir::Cache "{self.path}/cache";
            Dir::Log "{self.path}/log";
            Dir::Etc::sourcelist "{self.path}/sources.list";
            Dir::Etc::sourceparts "/dev/null";
            Dir::Etc::preferences "/dev/null";
            Dir::Etc::preferencesparts "/dev/null";
            APT::Architecture "{architecture}";
            APT::Architectures {{ "{architecture}"; }};
            APT::Default-Release "{suite}";
            APT::Install-Recommends "false";
            APT::Sandbox::User "root";
            APT::Update::Error-Mode "any";
            Acquire::Languages "none";
            Acquire::Retries "2";
            Acquire::http::Timeout "30";
            Acquire::https::Timeout "30";
            """,
        )

    def resolve(self, wanted: tuple[str, ...]) -> list[_Deb]:
        """The packages to unpack for `wanted`, dependencies included, from a fresh index."""
        keyring = f"signed-by={KEYRING} " if KEYRING.exists() else ""
        sources = [
            f"deb [{keyring}arch={self.architecture} target=Packages] {mirror()} {suite} main\n"
            for suite in dict.fromkeys((self.suite.removesuffix("-backports"), self.suite))
        ]
        with self._locked():
            write_whole(self.path / "sources.list", "".join(sources))
            with step(f"reading the package index of {self.suite}") as advance:
                self._run(["apt-get", "update"], advance)
            plan = self._run(["apt-get", "install", "--yes", "--print-uris", *wanted])
        debs = []
        for file, size in re.findall(r"^'\S+' (\S+)\.deb (\d+)", plan, re.MULTILINE):
            name, version, _ = unquote(file).split("_")
            debs.append(_Deb(name, version, int(size)))
        return debs

    def _locked(self) -> AbstractContextManager[int]:
        return locked(self.path / "lock", f"its use of the package index of {self.suite}")

    def unpack(self, debs: list[_Deb], tree: Path, advance: Advance) -> None:
        """Download `debs` and unpack them into the folder `tree`."""
        with workplace(tree.parent) as folder:
            files = self.download(debs, lambda percent: advance(percent * 0.7), folder)
            for index, file in enumerate(files):
                self._run(["dpkg-deb", "--extract", str(file), str(tree)])
                advance(70 + 30 * index / len(files))

    def download(self, debs: list[_Deb], advance: Advance, folder: Path) -> list[Path]:
        """The packages themselves, in `folder`."""
        with self._locked():  # apt reads, and may write, what another process's update replaces
            self._run(["apt-get", "download", *(f"{deb.name}={deb.version}" for deb in debs)], advance, folder)
        return sorted(folder.glob("*.deb"))

    def _run(self, command: list[str], advance: Advance = lambda percent: None, folder: Path | None = None) -> str:
        """Run apt or dpkg, tell `advance` the percentage that apt reports, return the output."""
        if command[0] == "apt-get":
            # -qq keeps the log short; the progress comes as `dlstatus:<item>:<percent>:<text>` lines on descriptor 1.
            command = [*command, f"--config-file={self.config}", "-qq", "-o", "APT::Status-Fd=1"]
        log = []
        process = subprocess.Popen(
            [host.program(command[0]), *command[1:]],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"LC_ALL": "C"},
        )
        assert process.stdout
        with process:
            for line in process.stdout:
                if found := re.match(r"dlstatus:\d+:([\d.]+):", line):
                    advance(float(found[1]))
                else:
                    log.append(line)
        output = "".join(log)
        if process.returncode:
            if full := host.is_full(output, self.path):
                raise VmError(str(full))
            raise VmError(_explain(output, self.suite))
        return output


def mirror() -> str:
    """Address of a Debian mirror: $NICMODEL_MIRROR, else the one that the host's apt uses.

    Raises:
        VmError: The host's apt has no Debian mirror (an Ubuntu host, for example).
    """
    if named := os.environ.get("NICMODEL_MIRROR"):
        return named
    for line in _ask_apt("indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"):
        if found := re.fullmatch(r"Debian Debian (\S+)", line):
            return found[1]
    # Where `apt-get update` has never run, apt knows only addresses: '<archive>/dists/<suite>/InRelease' ...
    for line in _ask_apt("update", "--print-uris"):
        if found := re.match(r"'(\S+/debian)/+dists/", line):
            return found[1]
    raise VmError(
        "apt on this host has no Debian mirror: name one in the environment, NICMODEL_MIRROR=http://<host>/debian"
    )


def _ask_apt(*arguments: str) -> list[str]:
    try:
        run = subprocess.run([host.program("apt-get"), *arguments], capture_output=True, text=True)
    except VmError:
        raise VmError("apt-get is missing: guests are made of Debian packages; use a Debian or Ubuntu host") from None
    return run.stdout.splitlines()


def _explain(output: str, suite: str) -> str:
    """One sentence for apt's output."""
    if "NO_PUBKEY" in output or "is not signed" in output:
        return (
            f"this host's keyring cannot verify Debian {suite}: "
            "install a newer debian-archive-keyring (apt install debian-archive-keyring)"
        )
    problems = re.findall(r"^(?:E|Err|W): ?(.*)$", output, re.MULTILINE)
    reason = problems[0] if problems else output.strip().rpartition("\n")[2]
    return f"cannot fetch packages of Debian {suite}: {reason}"
