"""The guest's image: an unmodified Debian kernel and an initramfs of Debian packages.

The initramfs is two cpio archives, one after the other, which the kernel unpacks in turn (Linux,
Documentation/driver-api/early-userspace/buffer-format.rst): a large one of packages and kernel modules, which changes
only with them, and a small one of this project's own files. Neither is compressed: QEMU hands the file over at once,
while a guest without KVM would spend seconds on decompression.
"""

import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nicmodel.cache import cache_dir
from nicmodel.installation import data_folder
from nicmodel.nearest import did_you_mean
from nicmodel.vm import agent, host
from nicmodel.vm.errors import VmError
from nicmodel.vm.packages import Packages, Tree, locked, obtain
from nicmodel.vm.progress import step

UNUSED_SECONDS = 24 * 3600
"""Images that nobody has used for this long are deleted: each change to the recipe makes a new one of 200 MB."""

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

LEFT_OUT = re.compile(
    r"usr/share/(doc|man|info|locale|zoneinfo|lintian|bash-completion|perl5|bug|common-licenses)$"
    r"|usr/lib/x86_64-linux-gnu/(gconv|perl-base)$"
    r"|usr/lib/python3[^/]*/(test|pydoc_data|idlelib|ensurepip)$"
    r"|(boot|dev|proc|sys|run|tmp|var/lib|var/cache)$"
)
"""Folders of the packages that no guest needs, or that it makes itself."""

MODULES = (
    *(
        "virtio_pci",
        "virtio_console",
        "gve",
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
    *("nf_tables", "nft_ct", "nft_nat", "nft_masq", "nft_limit", "overlay", "erofs", "9pnet_virtio", "9p"),
    *("vmw_vsock_virtio_transport", "ipv6", "inet_diag", "tcp_diag", "udp_diag", "udmabuf", "test_bpf", "pktgen"),
    "nvmet_tcp",
)
"""Kernel modules in the image, besides those they depend on. What a kernel has built in, or not at all, is skipped."""


@dataclass(frozen=True)
class Kernel:
    """An unmodified kernel of Debian's.

    Attributes:
        name: What the user calls it.
        suite: Debian suite of the package.
        package: A `linux-image` package; a metapackage follows its suite's newest kernel.
    """

    name: str
    suite: str
    package: str = "linux-image-cloud-amd64"


KERNELS = {
    # 7.2 when this was written: the suite moves on, and the metapackage with it.
    "trixie-backports": Kernel("trixie-backports", "trixie-backports"),
    "trixie": Kernel("trixie", "trixie"),  # 6.12
    "bookworm": Kernel("bookworm", "bookworm"),  # 6.1
}
DEFAULT_KERNEL = KERNELS["trixie-backports"]


def kernel_named(name: str) -> Kernel:
    """The kernel called `name`: one of `KERNELS`, or a `linux-image-…` package of trixie-backports to pin a version."""
    if name.startswith("linux-image-"):
        return Kernel(name, DEFAULT_KERNEL.suite, name)
    try:
        return KERNELS[name]
    except KeyError:
        raise VmError(
            f"no kernel '{name}': say one of {', '.join(KERNELS)}, or linux-image-<version>"
            + did_you_mean(name, KERNELS)
        ) from None


@dataclass(frozen=True)
class Image:
    """What QEMU boots.

    Attributes:
        kernel: The bzImage.
        initrd: The initramfs.
        version: The kernel's release, as `uname -r` prints it.
    """

    kernel: Path
    initrd: Path
    version: str


def build_image(kernel: Kernel = DEFAULT_KERNEL, *, update: bool = False) -> Image:
    """The image for `kernel`: from the cache, else built, downloading what is missing.

    Args:
        kernel: The kernel that it boots.
        update: Look for newer package versions first.
    """
    userland = obtain(USERLAND, update=update)
    linux = obtain(kernel_packages(kernel), update=update)
    version = kernel_version(linux)
    folder = cache_dir() / "images"
    with locked(folder / "lock", "the guest's image"):
        base = _base(folder, userland, linux, version)
        initrd = _with_overlay(base)
        for file in (base, initrd):
            mark_used(file)
        for old in folder.glob(f"{version}-*"):
            if time.time() - old.stat().st_atime > UNUSED_SECONDS:
                old.unlink()
    return Image(_vmlinuz(linux, version), initrd, version)


def mark_used(file: Path) -> None:
    """Set the time when `file` was last read to now. When it was written stays: snapshots depend on that."""
    os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))


def kernel_packages(kernel: Kernel) -> Packages:
    """The request for `kernel` alone: what it depends on serves to install it, which nobody does here."""
    return Packages("linux", (kernel.package,), kernel.suite, keep=r"linux-(image|base|binary|modules)-\d")


def kernel_version(linux: Tree) -> str:
    """The release of the kernel in a tree of `kernel_packages`, as `uname -r` prints it."""
    return next(path.name for path in _modules_root(linux).iterdir())


def _modules_root(linux: Tree) -> Path:
    merged = linux.path / "usr/lib/modules"
    return merged if merged.is_dir() else linux.path / "lib/modules"  # bookworm's kernel is not in /usr


def _vmlinuz(linux: Tree, version: str) -> Path:
    beside = _modules_root(linux) / version / "vmlinuz"
    return beside if beside.exists() else linux.path / f"boot/vmlinuz-{version}"


def _base(folder: Path, userland: Tree, linux: Tree, version: str) -> Path:
    """The archive of packages and modules."""
    key = hashlib.sha256(repr((userland.id, linux.id)).encode() + Path(__file__).read_bytes()).hexdigest()[:12]
    archive = folder / f"{version}-{key}.cpio"
    if archive.exists():
        return archive
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="building-") as name,
        step(f"building the guest's image for Linux {version}") as advance,
    ):
        root = Path(name)
        _copy_userland(userland, root)
        advance(10)
        copy_modules(linux, version, userland, root)
        advance(30)
        _compile_python(userland, root)
        advance(80)
        unfinished = archive.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            write_cpio(file, walk(root))
        unfinished.rename(archive)
    return archive


def _copy_userland(userland: Tree, root: Path) -> None:
    """Hard links to the userland's files, without what is left out, with busybox for commands that it lacks."""

    def ignore(folder: str, names: list[str]) -> list[str]:
        inside = os.path.relpath(folder, userland.path)
        return [name for name in names if LEFT_OUT.search(os.path.normpath(os.path.join(inside, name)))]

    shutil.copytree(userland.path, root, symlinks=True, ignore=ignore, copy_function=os.link, dirs_exist_ok=True)
    for name in ("dev", "proc", "sys", "run", "tmp", "mnt", "var/lib", "usr/local/bin", "usr/local/sbin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    busybox = root / "usr/bin/busybox"
    for applet in subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split():
        if not any(os.path.lexists(root / folder / applet) for folder in ("usr/bin", "usr/sbin")):
            (root / "usr/bin" / applet).symlink_to("busybox")


def copy_modules(linux: Tree, version: str, userland: Tree, root: Path, modules: Iterable[str] = MODULES) -> None:
    """`modules` and their dependencies, decompressed here since a guest without KVM is slow at that, and indexed."""
    source = _modules_root(linux) / version
    names: dict[str, Path] = {}
    for file in (source / "kernel").rglob("*.ko*"):
        names[file.name.partition(".")[0].replace("-", "_")] = file
    missing = [name for name in ("gve", "virtio_net") if name not in names]
    if missing:
        raise VmError(f"Linux {version} has no module {' '.join(missing)}: choose a 'cloud' or 'amd64' kernel package")
    target = root / "usr/lib/modules" / version
    wanted = [name for name in modules if name in names]
    done = set()
    while wanted:
        name = wanted.pop()
        if name in done:
            continue
        done.add(name)
        file = names[name]
        content = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
        copy = target / file.relative_to(source).with_suffix("" if file.suffix == ".xz" else ".ko")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        # The .modinfo section: NUL-terminated `key=value` strings.
        if depends := re.search(rb"\0depends=([^\0]+)\0", content):
            wanted += [dependency.replace("-", "_") for dependency in depends[1].decode().split(",")]
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if (source / name).exists():
            shutil.copy(source / name, target)
    depmod = userland.command("usr/bin/kmod", "-b", str(root), version)
    # kmod is one program of several names; the loader can be told the name to call it by.
    host.run([depmod[0], "--argv0", "depmod", *depmod[1:]], "the index of the guest's modules", root)


def _compile_python(userland: Tree, root: Path) -> None:
    """Byte code for the guest's Python, which otherwise compiles its library anew at every start."""
    python = next((root / "usr/bin").glob("python3.*")).name
    compileall = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/")
    host.run(
        userland.command(
            f"usr/bin/{python}", *compileall, str(root / "usr/lib/python3"), str(root / "usr/lib" / python)
        ),
        "byte code for the guest's Python",
        root,
        {"PYTHONHOME": str(userland.path / "usr"), "PYTHONNOUSERSITE": "1"},
    )


def _with_overlay(base: Path) -> Path:
    """`base` followed by this project's own files."""
    overlay = [
        Entry("init", stat.S_IFREG | 0o755, GUEST_FILES / "init"),
        Entry("usr/lib/nicmodel", stat.S_IFDIR | 0o755),
        Entry("usr/lib/nicmodel/agent.py", stat.S_IFREG | 0o644, Path(agent.__file__)),
    ]
    content = b"".join(entry.source.read_bytes() for entry in overlay if entry.source)
    key = hashlib.sha256(content).hexdigest()[:12]
    initrd = base.with_name(f"{base.stem}-{key}.initrd")
    if not initrd.exists():
        unfinished = initrd.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            with base.open("rb") as archive:
                shutil.copyfileobj(archive, file, 1 << 20)
            write_cpio(file, overlay)
        unfinished.rename(initrd)
    return initrd


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
