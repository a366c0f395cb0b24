"""The guest's image: a kernel, and an initramfs of Debian packages and of the kernel's modules.

The initramfs is three cpio archives, one after the other, which the kernel unpacks in turn (Linux,
Documentation/driver-api/early-userspace/buffer-format.rst): a large one of packages, which all kernels share, one of
the kernel's modules, and a small one of this project's own files. None is compressed: QEMU hands the file over at once,
while a guest without KVM would spend seconds on decompression.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from nicmodel.cache import cache_dir
from nicmodel.installation import data_folder
from nicmodel.vm import agent, host
from nicmodel.vm.arch import AMD64, Arch
from nicmodel.vm.kernel import Kernel, modinfo, module_name
from nicmodel.vm.needs import GUEST, MACHINE, require
from nicmodel.vm.packages import Packages, Tree, locked, obtain, workplace
from nicmodel.vm.progress import step

UNUSED_SECONDS = 7 * 24 * 3600
"""Images that nobody has used for this long are deleted."""

KEPT = 10
"""So many are kept, of 100 MB each: there is a new one for each kernel that was built, and for each change here."""

FEW_MODULES = 200
"""A kernel that has no more than these, one that was configured for a purpose, has all of them in the image."""

GUEST_FILES = data_folder("guest")

USERLAND = Packages(
    "guest",
    (
        *("busybox-static", "dash", "bash", "coreutils", "util-linux", "procps", "ncurses-base", "kmod"),
        *("iproute2", "ethtool", "iputils-ping", "tcpdump", "socat", "iperf3", "jq"),
        # yaml and jsonschema: the kernel's own network selftests and its netlink tools import them.
        *("python3-minimal", "libpython3-stdlib", "python3-yaml", "python3-jsonschema"),
    ),
    suite="trixie",
)
"""The programs of guests of this host's own architecture. Some of them also serve here, to make images."""

LEFT_OUT = re.compile(
    r"usr/share/(doc|man|info|locale|zoneinfo|lintian|bash-completion|perl5|bug|common-licenses)$"
    r"|usr/lib/[^/]+-linux-gnu/(gconv|perl-base)$"
    r"|usr/lib/python3[^/]*/(test|pydoc_data|idlelib|ensurepip)$"
    r"|(boot|dev|proc|sys|run|tmp|var/lib|var/cache)$"
)
"""Folders of the packages that no guest needs, or that it makes itself."""

MODULES = (
    *(
        "virtio_pci",
        "virtio_console",
        "gve",
        "idpf",
        "virtio_net",
        "vmxnet3",
        "e1000e",
        "igb",
        "virtio_blk",
        "virtio_rng",
        "virtio_mem",
        "vfio_pci",
        "vfio_iommu_type1",
    ),
    *("tun", "tap", "veth", "dummy", "ifb", "bridge", "macvlan", "ipvlan", "vxlan", "8021q", "bonding", "tls"),
    *("sch_fq", "sch_fq_codel", "sch_netem", "sch_ingress", "sch_mqprio", "sch_prio", "sch_tbf", "sch_htb"),
    *("cls_u32", "cls_flower", "cls_bpf", "cls_matchall", "act_mirred", "act_gact", "act_skbedit", "tcp_bbr"),
    *("nf_tables", "nft_ct", "nft_nat", "nft_masq", "nft_limit", "overlay", "erofs", "9pnet_virtio", "9p", "virtiofs"),
    *("vmw_vsock_virtio_transport", "ipv6", "inet_diag", "tcp_diag", "udp_diag", "udmabuf", "test_bpf", "pktgen"),
    "nvmet_tcp",
)
"""Kernel modules in the image, besides those they depend on. What a kernel has built in, or not at all, is skipped."""

#: What a signed module ends with: Linux, include/linux/module_signature.h.
_SIGNATURE = b"~Module signature appended~\n"


@dataclass(frozen=True)
class Image:
    """What QEMU boots.

    Attributes:
        kernel: The kernel's image.
        initrd: The initramfs.
        version: The kernel's release, as `uname -r` prints it.
        arch: The architecture.
    """

    kernel: Path
    initrd: Path
    version: str
    arch: Arch = AMD64


def userland(arch: Arch) -> Packages:
    """The request for the guest's programs."""
    return replace(USERLAND, architecture=arch.name)


def build_image(kernel: Kernel, *, update: bool = False) -> Image:
    """The image for `kernel`: from the cache, else built, downloading what is missing.

    Args:
        kernel: The kernel that it boots.
        update: Look for newer package versions first.

    Raises:
        VmError: The kernel lacks what a guest needs, or a module cannot be read.
    """
    programs = obtain(userland(kernel.arch), update=update)
    folder = cache_dir() / "images"
    overlay = _overlay()
    added = b"".join(entry.source.read_bytes() for entry in overlay if entry.source)
    initrd = folder / f"{kernel.release}-{_key(programs.id, kernel.id, added)}.initrd"
    with locked(folder / "lock", "the guest's image"):
        base = _base(folder, programs)
        if not initrd.exists():
            require(kernel, (*GUEST, *MACHINE[kernel.arch]))
            with (
                workplace(folder) as work,
                step(f"building the guest's image for Linux {kernel.release}"),
            ):
                copy_modules(kernel, work / "modules")
                unfinished = work / initrd.name
                with unfinished.open("wb") as file:
                    with base.open("rb") as archive:
                        shutil.copyfileobj(archive, file, 1 << 20)
                    write_cpio(file, walk(work / "modules"))
                    write_cpio(file, overlay)
                unfinished.rename(initrd)
        for used in (base, initrd):
            mark_used(used)
        _prune(folder)
    return Image(kernel.image, initrd, kernel.release, kernel.arch)


def _key(*parts: object) -> str:
    """Stands for `parts`, and for the recipe."""
    return hashlib.sha256(repr(parts).encode() + Path(__file__).read_bytes()).hexdigest()[:12]


def _prune(folder: Path) -> None:
    """Delete what has not been used for long, and the oldest of more than is kept."""
    used = {file: file.stat().st_atime for file in folder.glob("*.*") if file.suffix != ".lock"}
    initrds = sorted((file for file in used if file.suffix == ".initrd"), key=lambda file: -used[file])
    for file, when in used.items():
        if time.time() - when > UNUSED_SECONDS or file in initrds[KEPT:]:
            file.unlink()


def mark_used(file: Path) -> None:
    """Set the time when `file` was last read to now. When it was written stays: snapshots depend on that."""
    os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))


def _base(folder: Path, programs: Tree) -> Path:
    """The archive of packages."""
    archive = folder / f"userland-{_key(programs.id)}.cpio"
    if archive.exists():
        return archive
    with (
        workplace(folder) as work,
        step("building the guest's programs") as advance,
    ):
        root = work / "root"
        _copy_userland(programs, root)
        advance(20)
        _compile_python(root)
        advance(80)
        unfinished = work / archive.name
        with unfinished.open("wb") as file:
            write_cpio(file, walk(root))
        unfinished.rename(archive)
    return archive


def _copy_userland(programs: Tree, root: Path) -> None:
    """Hard links to the packages' files, without what is left out, with busybox for commands that it lacks."""

    def ignore(folder: str, names: list[str]) -> list[str]:
        inside = os.path.relpath(folder, programs.path)
        return [name for name in names if LEFT_OUT.search(os.path.normpath(os.path.join(inside, name)))]

    shutil.copytree(programs.path, root, symlinks=True, ignore=ignore, copy_function=os.link, dirs_exist_ok=True)
    for name in ("dev", "proc", "sys", "run", "tmp", "mnt", "var/lib", "usr/local/bin", "usr/local/sbin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    busybox = obtain(USERLAND).path / "usr/bin/busybox"
    for applet in subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split():
        if not any(os.path.lexists(root / folder / applet) for folder in ("usr/bin", "usr/sbin")):
            (root / "usr/bin" / applet).symlink_to("busybox")


def copy_modules(kernel: Kernel, root: Path, modules: Iterable[str] = MODULES) -> None:
    """`modules` and their dependencies into usr/lib/modules of `root`, indexed.

    They are decompressed here, since a guest without KVM is slow at that, and without debugging information. A kernel
    that has only a few gets them all.
    """
    target = root / "usr/lib/modules" / kernel.release
    target.mkdir(parents=True)
    if len(kernel.modules) <= FEW_MODULES:
        modules = (*modules, *kernel.modules)
    wanted = [name for name in modules if name in kernel.modules]
    done = set()
    while wanted:
        name = wanted.pop()
        if name in done or name not in kernel.modules:
            continue
        done.add(name)
        module = kernel.modules[name]
        content = module.content()
        copy = target / module.place
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        if kernel.arch.is_hosts:
            _strip(copy, content)
        wanted += [module_name(needed) for needed in modinfo(content, "depends").split(",") if needed]
    for index, content in kernel.indexes.items():
        (target / index).write_bytes(content)
    depmod = kmod("depmod", "-b", str(root), "-m", "/usr/lib/modules", kernel.release)
    host.run(depmod, "the index of the guest's modules", root)


def kmod(name: str, *arguments: str) -> list[str]:
    """How to run `depmod` or `modinfo` of Debian's packages on this host, for modules of any architecture."""
    # kmod is one program of several names; the loader can be told the name to call it by.
    loader, *words = obtain(USERLAND).command("usr/bin/kmod", *arguments)
    return [loader, "--argv0", name, *words]


def _strip(file: Path, content: bytes) -> None:
    """Without debugging information a module is a tenth as large. Whoever has built it has the program for it.

    The signature behind a signed one would be lost.
    """
    if b"\0.debug_info\0" in content and not content.endswith(_SIGNATURE) and (strip := host.find_program("strip")):
        host.run([strip, "--strip-debug", str(file)], "a module without debugging information", file.parent)


def _compile_python(root: Path) -> None:
    """Byte code for the guest's Python, which otherwise compiles its library anew at every start.

    It is the same on all architectures. So this host's Python of the same suite makes it.
    """
    programs = obtain(USERLAND)
    python = next((root / "usr/bin").glob("python3.*")).name
    compileall = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/")
    host.run(
        programs.command(
            f"usr/bin/{python}", *compileall, str(root / "usr/lib/python3"), str(root / "usr/lib" / python)
        ),
        "byte code for the guest's Python",
        root,
        {"PYTHONHOME": str(programs.path / "usr"), "PYTHONNOUSERSITE": "1"},
    )


def _overlay() -> list["Entry"]:
    """The files of this project itself."""
    return [
        Entry("init", stat.S_IFREG | 0o755, GUEST_FILES / "init"),
        Entry("usr/lib/nicmodel", stat.S_IFDIR | 0o755),
        Entry("usr/lib/nicmodel/agent.py", stat.S_IFREG | 0o644, Path(agent.__file__)),
    ]


@dataclass(frozen=True)
class Entry:
    """One member of a cpio archive.

    Attributes:
        name: Path in the archive, relative.
        mode: File type and permissions, as `st_mode`.
        source: The file whose content or link target it has; None for a folder.
    """

    name: str
    mode: int
    source: Path | None = None


def walk(root: Path) -> Iterator[Entry]:
    """Everything below `root`, folders before what they hold."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(folders + files):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            yield Entry(str(path.relative_to(root)), mode, None if stat.S_ISDIR(mode) else path)


def write_cpio(file: BinaryIO, entries: Iterable[Entry]) -> None:
    """Write a cpio archive in the "newc" format (cpio(5)): owner root, no hard links.

    Args:
        file: Written to at its position, which must be a multiple of 4 as every archive's length is.
        entries: Members in order; a folder must come before its content. Folders, files and symbolic links.
    """
    for inode, entry in enumerate(entries, 1):
        if entry.source is None:
            content = b""
        elif stat.S_ISLNK(entry.mode):
            content = os.readlink(entry.source).encode()
        else:
            content = entry.source.read_bytes()
        _write_member(file, entry.name, inode, entry.mode, content)
    _write_member(file, "TRAILER!!!", 0, 0, b"")


def _write_member(file: BinaryIO, name: str, inode: int, mode: int, content: bytes) -> None:
    encoded = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device and rdevice (two words each), length of name, checksum
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    file.write(header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4))
