"""Programs for the guest, compiled here: the kernel's own network selftests, and the C sources of `guest/`."""

import contextlib
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nicmodel.cache import cache_dir
from nicmodel.vm import host
from nicmodel.vm.arch import AMD64, ARCHES, Arch
from nicmodel.vm.compiler import COMPILER, cross_compiler, enter, link_tree, tool_prefix
from nicmodel.vm.driver import Driver
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest
from nicmodel.vm.image import GUEST_FILES
from nicmodel.vm.kernel import DEFAULT_KERNEL, Kernel
from nicmodel.vm.packages import Packages, Tree, building, locked, obtain, obtained
from nicmodel.vm.progress import step

# What the network selftests need besides, to be built and to be run: 65 MB, most of it LLVM, which clang and bpftrace
# share. Only these packages are taken of what they depend on: the rest is in the compiler's tree, or in the guest.
BPF_TOOLS = Packages(
    "bpf-tools",
    ("clang-19", "bpftrace", "bpftool", "libelf-dev", "rsync"),
    suite="trixie-backports",
    keep=r"clang-19$|bpf|rsync|(zlib1g|libzstd)-dev"
    r"|lib(clang|llvm|z3|edit|bsd|md|xml2|lz4|xxhash|popt|lzma|sframe|stdc\+\+6|elf|bpf)",
)
# Newer than trixie's: io_uring's zero-copy receive came with liburing 2.10, and the tests read `ethtool --json -l`.
NEWER_TOOLS = Packages("newer-tools", ("liburing-dev", "ethtool"), suite="forky", keep="liburing-dev|ethtool")

# What libbpf is linked with: this host's own comes with the tools above.
LIBRARIES = Packages("libraries", ("libelf-dev",), suite="trixie-backports", keep="libelf|zlib1g|libzstd")

# MAINTAINERS: the netlink code generator looks for it in every folder upwards, and never ends without it.
SOURCE_PARTS = ("MAINTAINERS", "Makefile", "Documentation/netlink", "include", "scripts", "arch/x86", "tools")

GUEST_TOOLS = ("devmem_receiver", "devmem_sender", "xdp_program", "xdp_socket", "tcp_peer")
MODULE = "bar_dmabuf"


def build_guest_tools(arch: Arch = AMD64) -> Path:
    """Folder of the programs compiled from `guest/`, one for each of `GUEST_TOOLS`. They are linked statically."""
    sources = sorted([*GUEST_FILES.glob("*.c"), *GUEST_FILES.rglob("*.h")])
    content = b"".join(source.read_bytes() for source in sources)
    shared = " ".join(source.name for source in sources if source.suffix == ".c" and source.stem not in GUEST_TOOLS)
    script = "".join(
        f"{tool_prefix(arch)}gcc -std=gnu11 -O2 -Wall -Wextra -Werror -static -o /out/{tool} {tool}.c {shared}\n"
        for tool in GUEST_TOOLS
    )
    places = {source: f"build/{source.relative_to(GUEST_FILES)}" for source in sources}
    return _build("guest-tools", content, places, script, arch)


def build_qemu_plugin(source: Path, api: int) -> Path:
    """A plugin of QEMU's emulator, for a version of QEMU's plugin interface: one C file, which is told it as `API`."""
    options = f"-std=gnu23 -O2 -Wall -Wextra -Werror -shared -fPIC -fvisibility=hidden -DAPI={api}"
    script = f"gcc {options} -o /out/plugin.so {source.name}\n"
    name = f"{source.parent.name}-plugin-{api}"
    return _build(name, source.read_bytes(), {source: f"build/{source.name}"}, script) / "plugin.so"


def build_guest_module(kernel: Kernel) -> Path:
    """The module of `guest/module`, which exports a PCI device's memory as dma-bufs, for exactly this kernel.

    Raises:
        VmError: The kernel is neither Debian's nor the debug kernel; or it does not compile: those before 6.13 lack
            dma_buf_phys_vec_to_sgt().
    """
    check_guest_module(kernel)
    return Driver(GUEST_FILES / "module", kernel).build().modules[0]


def check_guest_module(kernel: Kernel) -> None:
    """Say before a guest has booted that there can be no module of `guest/module` for its kernel.

    Raises:
        VmError: The kernel is neither Debian's nor the debug kernel, or for another architecture than this host's.
    """
    if not kernel.arch.is_hosts:
        raise VmError(
            f"{MODULE}, the driver of accelerators, is built for {AMD64.name} only, and this guest is"
            f" {kernel.arch.name}: --device-memory gives memory as a NUMA node"
        )
    if not isinstance(kernel.headers, Packages | Tree):
        raise VmError(f"{MODULE}, the driver of accelerators, is built for Debian's kernels only: choose one")


def build_ncdevmem(arch: Arch = AMD64) -> Path:
    """The kernel's own devmem test program, unmodified: tools/testing/selftests/drivers/net/hw/ncdevmem.c."""
    source = kernel_source(arch)
    script = (
        "cd tools/testing/selftests/drivers/net/hw\n"
        # The interfaces' headers come with the compiler's tree: TARGETS and KHDR_INCLUDES ask for no others.
        f"make OUTPUT=/out {_make_tools(arch)} TARGETS= KHDR_INCLUDES= /out/ncdevmem\n"
    )
    return _build("ncdevmem", source.name.encode(), {source: "build"}, script, arch) / "ncdevmem"


def _make_tools(arch: Arch) -> str:
    """The compiler for make, and what makes archives and one object of several: this host's own know no other code."""
    prefix = tool_prefix(arch)
    return f"CC={prefix}gcc" + (f" AR={prefix}ar LD={prefix}ld" if prefix else "")


def build_selftests(tree: Path | None = None, arch: Arch = AMD64) -> Path:
    """The kernel's network driver selftests, built and installed as drivers/net/README.rst says.

    Args:
        tree: A kernel's source of the user's own, which is not written to; None: that of the default kernel's package.
        arch: The guest's architecture.

    The folder has `drivers/net`, `drivers/net/hw` and `net/lib` of tools/testing/selftests as their Makefile installs
    them: scripts, C programs (`drivers/net/hw/iou-zcrx`, `drivers/net/hw/ncdevmem` …), BPF objects (`net/lib/*.bpf.o`,
    by clang), and the Python netlink library with its specifications. All of it runs in the guest.
    `kselftest-list.txt` names the test programs.

    Raises:
        VmError: `tree` is no kernel's source, or its tests do not compile.
    """
    bpf_tools, newer_tools = obtain(BPF_TOOLS), obtain(replace(NEWER_TOOLS, architecture=arch.name))
    libraries = [] if arch.is_hosts else [obtain(replace(LIBRARIES, architecture=arch.name))]
    script = (
        "ln -s mawk /usr/bin/awk\n"  # as mawk's installation would
        # HAS_IOURING_ZCRX: the Makefile finds out by a command that only bash understands.
        'make -s -C tools/testing/selftests TARGETS="drivers/net drivers/net/hw" FORCE_TARGETS=1 KHDR_INCLUDES='
        f" {_make_tools(arch)} CLANG=clang-19 HAS_IOURING_ZCRX=y INSTALL_PATH=/out/selftests install\n"
    )
    trees = [bpf_tools, newer_tools, *libraries]
    tools = {one.path: "." for one in trees}
    ids = [one.id for one in trees]
    if tree:
        source_release(tree, arch)
        files = list(_source_files(tree, arch))
        # As with modules of a kernel of one's own, sizes and times stand for the content.
        stats = [(str(file.relative_to(tree)), file.stat(follow_symlinks=False)) for file in files]
        known = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        identity = "\0".join([known, *ids]).encode()
        places = {file: f"build/{file.relative_to(tree)}" for file in files}
        return _build("selftests", identity, places | tools, script, arch) / "selftests"
    source = kernel_source(arch)
    identity = "\0".join([source.name, *ids]).encode()
    return _build("selftests", identity, {source: "build", **tools}, script, arch) / "selftests"


def _source_parts(arch: Arch) -> tuple[str, ...]:
    """`SOURCE_PARTS`, and what programs for another architecture are built from besides."""
    return SOURCE_PARTS if arch.is_hosts else (*SOURCE_PARTS, f"arch/{arch.source}")


def source_release(tree: Path, arch: Arch = AMD64) -> str:
    """The release of a kernel's source, such as "7.3".

    Args:
        tree: Where it is.
        arch: What is to be built of it is for this architecture.

    Raises:
        VmError: It is no kernel's source.
    """
    try:
        makefile = (tree / "Makefile").read_text("utf-8", errors="replace")
    except OSError:
        makefile = ""
    numbers = [re.search(rf"^{name} = (\d+)$", makefile, re.MULTILINE) for name in ("VERSION", "PATCHLEVEL")]
    missing = [
        part for part in (*_source_parts(arch), "tools/testing/selftests/drivers/net") if not (tree / part).exists()
    ]
    if missing or not all(numbers):
        lacks = missing[0] if missing else "a VERSION in its Makefile"
        raise VmError(
            f"{tree} is no source of a kernel, it lacks {lacks}: name the folder that has the kernel's Makefile"
        )
    return ".".join(number[1] for number in numbers if number)


#: What `make` has left in a tree: the compiler's tree has other headers, and nothing of the host's runs in the guest.
_GENERATED = (
    *("include/generated", "include/config"),
    *(f"arch/{arch.source}/include/generated" for arch in ARCHES.values()),
)
_OBJECTS = (b"\x7fELF", b"!<ar")


def _source_files(tree: Path, arch: Arch = AMD64) -> Iterator[Path]:
    """The files of the parts that are needed, in order, without what has been built in the tree."""
    for part in _source_parts(arch):
        if (tree / part).is_file():
            yield tree / part
        for folder, folders, names in os.walk(tree / part):
            at = Path(folder)
            links = [name for name in folders if (at / name).is_symlink()]
            folders[:] = sorted(name for name in folders if str((at / name).relative_to(tree)) not in _GENERATED)
            for file in (at / name for name in sorted([*names, *links])):
                if file.is_symlink() or (file.is_file() and not is_object(file)):
                    yield file


def is_object(file: Path) -> bool:
    """Whether a file is what a compiler, linker or archiver has made."""
    with file.open("rb") as content:
        return content.read(4) in _OBJECTS


def install_guest_tools(guest: Guest, names: Sequence[str] = (*GUEST_TOOLS, "ncdevmem")) -> None:
    """Put programs of `guest/`, and ncdevmem, where the guest's shell finds them."""
    folder = build_guest_tools(guest.kernel.arch)
    for name in names:
        path = build_ncdevmem(guest.kernel.arch) if name == "ncdevmem" else folder / name
        guest.put(path, f"/usr/local/bin/{name}")


def install_guest_module(guest: Guest) -> None:
    """Load the module of `guest/module`, after each boot."""
    guest.put(build_guest_module(guest.kernel), f"/root/{MODULE}.ko", 0o644)
    guest.run(f"insmod /root/{MODULE}.ko")


def kernel_source(arch: Arch = AMD64) -> Path:
    """The parts of the default kernel's source that its user-space tools and selftests are built from."""
    return _parts_of_source("" if arch.is_hosts else f"-{arch.name}", _source_parts(arch))


def driver_source(folder: str) -> Path:
    """A folder of the default kernel's source, such as drivers/net/ethernet/google/gve, in the cache: read only."""
    return _parts_of_source("-" + folder.replace("/", "-"), [folder]) / folder


def _parts_of_source(name: str, parts: Sequence[str]) -> Path:
    """A tree with some parts of the default kernel's source; `name` tells it from those with other parts."""
    source, package = default_source()
    path = cache_dir() / "source" / (source.id + name)
    with locked(path.with_suffix(".lock"), "unpacking the kernel's source"), building(path) as unfinished:
        if unfinished:
            with step("unpacking the kernel's source"):
                unpack(source_archive(source, package), unfinished, [f"{package}/{part}" for part in parts])
    return path


def default_source() -> tuple[Tree, str]:
    """The package with the source of the default kernel, as `source_package` has it."""
    linux = obtain(DEFAULT_KERNEL.packages)
    release = re.search(r"linux-image-(\d+\.\d+)\.", " ".join(linux.versions))
    if not release:
        raise VmError(f"no kernel release in {', '.join(linux.versions)}")
    return source_package(release[1], DEFAULT_KERNEL.suite)


def source_package(version: str, suite: str) -> tuple[Tree, str]:
    """The tree of the package with the whole source of a kernel, and its name.

    Args:
        version: The kernel's, such as "7.3".
        suite: Debian's, which has that kernel.

    Raises:
        VmError: The suite has no such package (any more).
    """
    package = f"linux-source-{version}"
    return obtain(Packages("linux-source", (package,), suite, keep="linux-source-")), package


def source_archive(source: Tree, package: str) -> Path:
    """The archive in the tree of `source_package`, compressed by xz; what is in it is below a folder of its name."""
    return source.path / f"usr/src/{package}.tar.xz"


def unpack(archive: Path, folder: Path, members: list[str]) -> None:
    """Unpack some members of a tar archive, without its first folder; decompressed here, as a host may have no xz."""
    command = [host.program("tar"), "-x", "-C", str(folder), "--strip-components=1", *members]
    with (
        lzma.open(archive) as content,
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said) as process,
    ):
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):  # tar's own words say more
            shutil.copyfileobj(content, process.stdin, 1 << 20)
            process.stdin.close()
        process.wait()
        said.seek(0)
        host.judge(process.returncode, said.read().decode(errors="replace"), "the kernel's source", folder)


def check_host() -> None:
    """Say now what would be said after many downloads: that there is no room for them, or nothing can be compiled.

    Raises:
        VmError: there is no compiler in the cache yet, and it could not be used.
    """
    if not obtained(COMPILER):
        host.require(host.programs(), host.cache(), host.room(), host.building())


def _build(name: str, identity: bytes, sources: dict[Path, str], script: str, arch: Arch = AMD64) -> Path:
    """Run `script` in the compiler's tree, in /build; what it leaves in /out is the result, cached.

    Args:
        name: What is built.
        identity: Stands for the content of the sources.
        sources: Files and folders of the host's and where they go in the tree, read only.
        script: For /bin/sh; ends at the first failure. What counts in /out are programs and folders.
        arch: That of the products.
    """
    compilers = [obtain(COMPILER)] if arch.is_hosts else [obtain(COMPILER), obtain(cross_compiler(arch))]
    ids = [compiler.id.encode() for compiler in compilers]
    key = hashlib.sha256(b"\0".join([*ids, identity, script.encode()])).hexdigest()[:12]
    path = cache_dir() / "tools" / f"{name}-{key}"
    with locked(path.with_suffix(".lock"), f"the build of {name}"), building(path) as unfinished:
        if unfinished:
            with (
                tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as folder,
                step(f"compiling {name}"),
            ):
                root = Path(folder)
                host.require(host.building())
                for compiler in compilers:
                    link_tree(compiler.path, root)
                (root / "out").mkdir()
                for source, target in sources.items():
                    link_tree(source, root / target)
                host.run([*enter(root), "/bin/sh", "-ec", f"export PATH=/usr/bin; cd /build\n{script}"], name, root)
                for product in (root / "out").iterdir():
                    if os.access(product, os.X_OK):
                        shutil.move(product, unfinished)
    return path
