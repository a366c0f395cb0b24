"""What this host offers to those who boot guests on it: programs, rights, room.

Each thing is looked at in one place, here or in `nicmodel.vm.doctor`: a command requires what it needs before it
downloads anything, and ``nicmodel doctor`` shows all of it.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from nicmodel.cache import cache_dir
from nicmodel.vm.errors import VmError

#: Programs of the host's that this project calls, and the Debian package of each.
PROGRAMS = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "chroot": "coreutils",
    "tar": "tar",
    "sh": "dash",
    "make": "make",
    "strip": "binutils",
    "ip": "iproute2",
    "valgrind": "valgrind",
}
#: What only tests and benchmarks call, and what is for modules of a kernel that was built here.
OPTIONAL = ("make", "strip", "ip", "valgrind")

#: An ordinary user's PATH on Debian is without these.
_SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin")

#: Free space that the cache folder needs for `nicmodel demo`: what it keeps, and what is there in between.
ROOM = 2 << 30
#: With less than this left, a failure of apt, dpkg, tar or a compiler is one of space.
_FULL = 4 << 20

#: What strerror(3) says of ENOSPC.
STORED_NO_MORE = "No space left on device"

#: Errors that are the host's state and not this program's fault.
STATE_OF_HOST = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})


class State(Enum):
    """How a check ended."""

    GOOD = "ok"
    LIMITED = "limited"
    BAD = "missing"


@dataclass(frozen=True)
class Check:
    """What was found of one thing.

    Attributes:
        subject: What was looked at.
        state: LIMITED: something is slower or left out; BAD: the demo does not run.
        found: What was found.
        advice: What to do about it; empty if there is nothing to do.
    """

    subject: str
    state: State
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.found}" + (f". {self.advice}" if self.advice else "")


def require(*checks: Check) -> None:
    """Go on only if none of them is BAD.

    Raises:
        VmError: the first that is.
    """
    for check in checks:
        if check.state is State.BAD:
            raise VmError(f"{check}\n('nicmodel doctor' shows all that this host can and cannot do)")


def find_program(name: str) -> str | None:
    """Path of one of `PROGRAMS`, also if it is in a folder for administrators that this user's PATH lacks."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(name, path=os.pathsep.join((path, *_SYSTEM)))


def program(name: str) -> str:
    """As `find_program`.

    Raises:
        VmError: it is not installed; the message names its package.
    """
    if found := find_program(name):
        return found
    raise VmError(f"the program {name} is missing on this host: apt install {PROGRAMS[name]}")


def programs() -> Check:
    """Whether all of `PROGRAMS` are there."""
    missing = [name for name in PROGRAMS if not find_program(name)]
    needed = [name for name in missing if name not in OPTIONAL]
    if not missing:
        return Check("programs", State.GOOD, "all there")
    advice = f"apt install {' '.join(dict.fromkeys(PROGRAMS[name] for name in needed or missing))}"
    if needed:
        return Check("programs", State.BAD, f"{', '.join(needed)} missing", advice)
    found = f"all there; {', '.join(missing)}, for some tests, benchmarks and kernels, missing"
    return Check("programs", State.GOOD, found, advice)


_ELSEWHERE = "name another folder: XDG_CACHE_HOME=/somewhere/else"


def existing(folder: Path) -> Path:
    """`folder`, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def cache() -> Check:
    """Whether the cache folder can be written."""
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return room()
        return Check("cache folder", State.BAD, f"{folder} cannot be written: {error.strerror}", f"N{_ELSEWHERE[1:]}")
    return Check("cache folder", State.GOOD, str(folder))


def free(folder: Path) -> int:
    """Bytes that this user can still write below `folder`; 0 if no file can be made for want of inodes."""
    room = os.statvfs(existing(folder))
    return 0 if room.f_files and not room.f_favail else room.f_bavail * room.f_frsize


def room(needed: int = ROOM, folder: Path | None = None) -> Check:
    """Whether there is space for `needed` bytes in the cache folder, or in another one."""
    folder = folder or cache_dir()
    left = free(folder)
    found = f"{left / 1e6:,.0f} MB free for {folder}"
    if left >= needed:
        return Check("disk space", State.GOOD, found)
    return Check("disk space", State.BAD, found, f"{needed / 1e6:,.0f} MB are needed: make room there, or {_ELSEWHERE}")


def is_full(said: str, folder: Path) -> Check | None:
    """Whether a program that worked in `folder` failed for want of space, whatever it says itself.

    Args:
        said: what it printed. Programs of a chain (dpkg, tar, xz) report each other's ends rather than the cause.
        folder: where it wrote.
    """
    words = (STORED_NO_MORE, "Disk quota exceeded", "enough free space")
    if any(word in said for word in words) or free(folder) < _FULL:
        found = f"the disk is full, {free(folder) / 1e6:.0f} MB free for {folder}"
        return Check("disk space", State.BAD, found, f"Make room there, or {_ELSEWHERE}")
    return None


def explain(error: OSError) -> str | None:
    """One sentence for an error that is the host's state (`STATE_OF_HOST`), None for any other."""
    if error.errno not in STATE_OF_HOST:
        return None
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        if isinstance(error.filename, str | bytes):
            return f"{where}{is_full(STORED_NO_MORE, existing(Path(os.fsdecode(error.filename)).parent))}"
        if check := is_full("", cache_dir()):  # else it is another file that is full, such as what is printed to
            return str(check)
    return f"{where}{error.strerror}"


def run(command: list[str], what: str, folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a program that makes `what` in `folder`.

    Returns:
        What it printed.

    Raises:
        VmError: it failed.
    """
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env=os.environ | dict(environment or {}),
    )  # fmt: skip
    judge(done.returncode, done.stdout, what, folder)
    return done.stdout


def judge(status: int, said: str, what: str, folder: Path) -> None:
    """Go on only if a program that made `what` in `folder` ended with status 0.

    Raises:
        VmError: it did not; the message says that the disk is full if that is why, else what the program said.
    """
    if not status:
        return
    if full := is_full(said, folder):
        raise VmError(f"{what} could not be built: {full}")
    raise VmError(f"{what} could not be built:\n" + "\n".join(said.splitlines()[-20:]))


def can_make_devices(folder: Path) -> bool:
    """Whether this user may make a /dev/null in `folder`, and open it: not in containers, or on a nodev mount."""
    try:
        with tempfile.TemporaryDirectory(dir=existing(folder)) as made:
            null = Path(made) / "null"
            os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
            null.open("wb").close()
    except OSError:
        return False
    return True


#: Settings that forbid user namespaces: the file, its value that does, and what allows them.
_SETTINGS = (
    ("/proc/sys/user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=10000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


def user_namespaces() -> Check:
    """Whether this user may have a user namespace with mounts of its own: asked of the kernel, by having one."""
    subject = "user namespaces"
    command = [program("unshare"), "--map-root-user", "--mount", program("mount"), "--bind", "/dev/null", "/dev/null"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if not done.returncode:
        return Check(subject, State.GOOD, "this user may have them")
    for file, forbids, allow in _SETTINGS:
        if os.geteuid() and Path(file).exists() and Path(file).read_text("utf-8", "surrogateescape").strip() == forbids:
            return Check(subject, State.BAD, "this host's settings forbid them", f"Allow them: {allow}")
    if _in_chroot():
        return Check(subject, State.BAD, "the kernel grants none in a chroot",
                     "Enter it by bwrap or systemd-nspawn instead")  # fmt: skip
    said = done.stderr.strip().rpartition("\n")[2]
    advice = (
        "In a container: start it with more rights (docker run --privileged, or --security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined)"
    )
    return Check(subject, State.BAD, f"the kernel refuses them ({said})", advice)


def building(find: Callable[[], Check] = user_namespaces) -> Check:
    """Whether programs for the guest can be compiled, in a folder that becomes the root folder: /dev/null is needed."""
    if can_make_devices(cache_dir()):
        return Check("compiling for guests", State.GOOD, "in a chroot, as root")
    for name in ("unshare", "mount", "chroot"):
        if not find_program(name):
            return Check("compiling for guests", State.BAD, f"{name} is missing", f"apt install {PROGRAMS[name]}")
    check = find()
    if check.state is State.GOOD:
        return Check("compiling for guests", State.GOOD, "in a user namespace")
    return Check(
        "compiling for guests",
        State.BAD,
        f"this needs root or user namespaces, and {check.found}",
        f"{check.advice}; or run as root. Without: nicmodel serve, and nicmodel vm without --tools",
    )


def _in_chroot() -> bool:
    """Whether this process's root folder is not its mount namespace's, as far as one can see without being root."""
    # The root of a mount namespace is a mount point of that namespace; /proc/self/mountinfo has it at "/" (proc(5)).
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return False
    return all(line.split()[4] != "/" for line in mounts)
