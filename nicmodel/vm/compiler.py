"""Debian's compiler, in a tree of unpacked packages that is entered by chroot.

So the host needs no compiler, and what is compiled fits the guest.
"""

import contextlib
import os
import shlex
import shutil
import stat
from pathlib import Path

from nicmodel.vm import host
from nicmodel.vm.arch import Arch
from nicmodel.vm.packages import Packages

COMPILER = Packages(
    "compiler",
    (
        # linux-libc-dev of backports has the interfaces of the newest kernel, devmem TCP among them.
        *("base-files", "dash", "coreutils", "sed", "grep", "findutils", "make", "gcc", "libc6-dev", "linux-libc-dev"),
        # The kernel generates its netlink library with Python.
        *("python3-minimal", "libpython3-stdlib", "python3-yaml", "python3-jsonschema"),
    ),
    suite="trixie-backports",
)

#: What the tree lacks of what Makefiles and scripts of drivers find on any host.
USUAL_PROGRAMS = Packages(
    "usual-programs",
    ("bash", "util-linux", "diffutils", "perl-base"),
    COMPILER.suite,
    keep="(bash|util-linux|diffutils|perl-base|libtinfo6|libcrypt1)$",
)


def cross_compiler(arch: Arch) -> Packages:
    """What the compiler's tree lacks to compile for another architecture."""
    wanted = (f"gcc-{arch.machine}-linux-gnu", f"libc6-dev-{arch.name}-cross")
    return Packages(f"{arch.name}-compiler", wanted, COMPILER.suite, keep=f".*({arch.machine}|{arch.name}|cross)")


def tool_prefix(arch: Arch) -> str:
    """What the names of a compiler's programs for an architecture begin with."""
    return "" if arch.is_hosts else f"{arch.triplet}-"


def link_tree(source: Path, target: Path) -> None:
    """Hard links to `source`'s files: cheap, and compilers and make replace files rather than write into them.

    What is at `target` already stays.
    """
    if source.is_symlink() or not source.is_dir():
        # A copy, with its time, by which make judges: a file of the user's own is never written to.
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
        return
    for folder, folders, files in os.walk(source):
        place = target / Path(folder).relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in [*files, *(name for name in folders if Path(folder, name).is_symlink())]:
            with contextlib.suppress(FileExistsError):
                os.link(Path(folder, name), place / name, follow_symlinks=False)


def furnish(root: Path, *trees: Path) -> None:
    """Have in `root` what kbuild works in: the files of `trees`, and what it insists on besides."""
    for tree in trees:
        link_tree(tree, root)
    (root / "usr/bin/awk").symlink_to("mawk")  # as mawk's installation would
    # objtool wants to know where its stack ends, and there is no /proc here.
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/maps").write_text("7ffffffde000-7ffffffff000 [stack]\n")


def pose_as(root: Path, release: str) -> None:
    """Have `uname -r` say there that this kernel runs: so Makefiles find its headers below /lib/modules."""
    program = root / "usr/local/bin/uname"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/bin/sh\n[ "$*" = -r ] && exec echo {shlex.quote(release)}\nexec /usr/bin/uname "$@"\n')
    program.chmod(0o755)
    (root / "usr/bin/which").symlink_to("which.debianutils")  # as debianutils' installation would


def enter(root: Path) -> list[str]:
    """How to run a command with `root` as its root folder, which gets a /dev/null."""
    (root / "dev").mkdir(exist_ok=True)
    null = root / "dev/null"
    chroot = host.program("chroot")
    if host.can_make_devices(root):
        if not null.is_char_device():
            null.unlink(missing_ok=True)
            os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        return [chroot, str(root)]
    # An ordinary user: a user namespace, and the host's device over an empty file.
    null.touch()
    inside = 'mount=$1 chroot=$2; shift 2; "$mount" --bind /dev/null "$1/dev/null" && exec "$chroot" "$@"'
    inside_words = ["sh", "-c", inside, "sh", host.program("mount"), chroot, str(root)]
    return [host.program("unshare"), "--map-root-user", "--mount", *inside_words]
