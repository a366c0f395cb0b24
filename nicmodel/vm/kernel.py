"""The guest's kernel: one of Debian's, or any that lies on this host, built or installed.

What the user says is a `KernelChoice`; what it is found to be is a `Kernel`, of which images, checks and modules are
made. A kernel of the user's own is known by the content of its files, so that one that was built again is another.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

from nicmodel.nearest import did_you_mean
from nicmodel.vm.arch import AMD64, ARCHES, ARM64, Arch
from nicmodel.vm.arm64image import Arm64Image
from nicmodel.vm.bzimage import BzImage, FormatError, decompress
from nicmodel.vm.errors import VmError
from nicmodel.vm.packages import Packages, Tree, obtain

if TYPE_CHECKING:
    from nicmodel.vm.debug_kernel import DebugKernel

# What `make` leaves in a tree. auto.conf is what was built: .config may have been edited since.
IMAGES = {arch: Path("arch", arch.source, arch.image) for arch in ARCHES.values()}
BZIMAGE = IMAGES[AMD64]
_RELEASE = Path("include/config/kernel.release")
_BUILT_CONFIG = Path("include/config/auto.conf")

#: The option by which a configuration tells its architecture.
_OPTIONS = {"CONFIG_X86_64": AMD64, "CONFIG_ARM64": ARM64}

BOOT = Path("/boot")
"""Where this host's kernels are."""

#: Options with which a kernel is several times slower.
_SLOW = {"KASAN", "KCSAN", "KMSAN", "PROVE_LOCKING"}
PATIENCE = 5
"""See `Kernel.patience`: for kernels that look for mistakes at each access to memory, or each lock."""

_MODULE = re.compile(r"\.ko(\.(xz|zst|gz))?$")
#: Where modules are below a root folder; /lib is a link to /usr/lib, but in older distributions.
_LIBS = ("usr/lib/modules", "lib/modules")
#: What depmod reads besides modules: their order, and what is built in.
_INDEXES = ("modules.order", "modules.builtin", "modules.builtin.modinfo")
#: Below lib/modules/RELEASE; what is in the last of them comes first for modprobe (depmod.d(5), "search").
_OVERRIDING = ("extra", "updates")


@dataclass(frozen=True)
class Module:
    """A kernel module.

    Attributes:
        file: Where it is on this host, perhaps compressed.
        place: Its path below lib/modules/RELEASE, not compressed.
    """

    file: Path
    place: str

    def content(self) -> bytes:
        """The ELF file.

        Raises:
            VmError: It cannot be read or decompressed.
        """
        try:
            content = self.file.read_bytes()
            return content if self.file.suffix == ".ko" else decompress(content)
        except OSError as error:
            raise VmError(f"the module {self.file} cannot be read: {error.strerror}") from error
        except FormatError as error:
            raise VmError(f"the module {self.file} cannot be decompressed: {error}") from error


def options_set(text: str) -> dict[str, str]:
    """The options that a kernel's configuration sets, by name without CONFIG_."""
    return dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.MULTILINE))


@dataclass(frozen=True)
class Kernel:
    """A kernel that a guest can boot.

    Attributes:
        name: What the user calls it.
        release: As `uname -r` prints it.
        image: What QEMU boots: the bzImage, or for arm64 the Image.
        modules: Its modules, by name with underscores, as `lsmod` shows them.
        indexes: What a folder of modules has besides, by name: modules.builtin for one.
        headers: What modules are compiled against: packages of Debian's, a tree like those, or a folder; None if there
            is nothing.
        id: Stands for the content of all files.
        config_file: The .config that it was built with; None: perhaps it is in the image.
        advice: What to do if one of its modules is missing.
        arch: Its architecture.
    """

    name: str
    release: str
    image: Path
    modules: Mapping[str, Module]
    indexes: Mapping[str, bytes]
    headers: Packages | Tree | Path | None
    id: str
    config_file: Path | None
    advice: str
    arch: Arch = AMD64

    @cached_property
    def config(self) -> Mapping[str, str] | None:
        """Options that are set, such as `{"GVE": "m"}`; None if nothing tells."""
        text = self.config_file.read_text("utf-8") if self.config_file else read_image(self.image).configuration()
        return None if text is None else options_set(text)

    @property
    def patience(self) -> int:
        """How many times as long as with other kernels things may take in its guests: limits of time are multiplied."""
        return PATIENCE if not _SLOW.isdisjoint(self.config or ()) else 1

    @cached_property
    def built_in(self) -> frozenset[str]:
        """Names of what could be a module and is built in, if `indexes` tell."""
        lines = self.indexes.get("modules.builtin", b"").decode().splitlines()
        return frozenset(module_name(line.rpartition("/")[2]) for line in lines)


KernelImage: TypeAlias = BzImage | Arm64Image


def read_image(path: Path) -> KernelImage:
    """The image in a file, of whichever architecture.

    Raises:
        VmError: It cannot be read, or is none.
    """
    return Arm64Image.read(path) or BzImage.read(path)


@dataclass(frozen=True)
class DebianKernel:
    """The choice of an unmodified kernel of Debian's.

    Attributes:
        name: What the user calls it.
        suite: Debian suite of the package.
        package: A `linux-image` package; a metapackage follows its suite's newest kernel.
    """

    name: str
    suite: str
    package: str = "linux-image-cloud-amd64"

    @property
    def arch(self) -> Arch:
        """The architecture that the package is for, which ends its name, or comes before a flavour (arm64-16k)."""
        return next((arch for arch in ARCHES.values() if re.search(rf"-{arch.name}(-\w+)?$", self.package)), AMD64)

    def of(self, arch: Arch) -> Self:
        """The choice of the kernel of the same suite and flavour for another architecture."""
        return replace(self, package=re.sub(rf"-{self.arch.name}(?=$|-\w+$)", f"-{arch.name}", self.package))

    @property
    def packages(self) -> Packages:
        """The request for the kernel alone: what it depends on serves to install it, which nobody does here."""
        keep = r"linux-(image|base|binary|modules)-\d"
        return Packages("linux", (self.package,), self.suite, keep, self.arch.name)

    def find(self, *, update: bool = False) -> Kernel:
        """The kernel, downloaded if it is not in the cache.

        Args:
            update: Look for a newer version first.
        """
        tree = obtain(self.packages, update=update)
        root = tree.path / "usr/lib/modules"
        root = root if root.is_dir() else tree.path / "lib/modules"  # bookworm's kernel is not in /usr
        release = next(path.name for path in root.iterdir())
        folder = root / release
        images = (folder / "vmlinuz", tree.path / f"boot/vmlinuz-{release}")
        # The compiler that they depend on is there; libelf1 is objtool's.
        headers = Packages(
            "linux-headers", (f"linux-headers-{release}",), self.suite, keep="linux-(headers|kbuild)-|libelf1"
        )
        return Kernel(
            name=self.name,
            release=release,
            image=next(image for image in images if image.exists()),
            modules=_installed(folder),
            indexes=_indexes(folder),
            headers=headers,
            id=tree.id,
            config_file=_first(folder / "config", tree.path / f"boot/config-{release}"),
            advice=f"choose a 'cloud' or '{self.arch.name}' kernel package",
            arch=self.arch,
        )


@dataclass(frozen=True)
class OwnKernel:
    """The choice of a kernel that lies on this host.

    Attributes:
        path: A bzImage (vmlinuz), or the folder in which `make` has built the kernel.
        modules: Its modules: lib/modules/RELEASE, or a folder that has lib/modules. None: they are taken from where the
            kernel was built, or installed.
        arch: The architecture that it has to be for; None: any.
    """

    path: Path
    modules: Path | None = None
    arch: Arch | None = None

    @property
    def name(self) -> str:
        """What the user calls it."""
        return str(self.path)

    def find(self, *, update: bool = False) -> Kernel:
        """What is there now.

        Args:
            update: Makes no difference: it is always looked at anew.

        Raises:
            VmError: It is no kernel, was not built, or its modules are another's.
        """
        path = self.path.expanduser().resolve()
        if any(path.match(str(image)) for image in IMAGES.values()) and (path.parents[3] / _RELEASE).exists():
            path = path.parents[3]
        if path.is_file():
            return self._from_image(path)
        if (path / "vmlinuz").is_file():  # lib/modules/RELEASE of some distributions
            return self._from_image(path / "vmlinuz")
        if not path.exists():
            raise VmError(f"no kernel {self.path}: there is no such file or folder")
        if not _first(path / "Kbuild", path / ".config", path / _RELEASE):
            raise VmError(f"{self.path} is no folder in which a kernel was built: it has neither Kbuild nor {BZIMAGE}")
        return self._from_tree(path)

    def _from_tree(self, tree: Path) -> Kernel:
        """As it stands after `make`: nothing is installed."""
        config = _first(tree / _BUILT_CONFIG, tree / ".config")
        text = config.read_text("utf-8") if config else ""
        arch = next((arch for option, arch in _OPTIONS.items() if re.search(f"^{option}=y$", text, re.MULTILINE)), None)
        if config and not arch:
            raise VmError(f"{tree} is configured for another architecture: guests are {' or '.join(ARCHES)}")
        image = tree / IMAGES[arch or AMD64]
        if not image.exists() or not (tree / _RELEASE).exists() or not config:
            raise VmError(
                f"the kernel in {tree} is not built: run 'make' there"
                ", or name the folder that 'make O=' has built it in"
            )
        read = read_image(image)
        release = (tree / _RELEASE).read_text("utf-8").strip()
        if read.release != release:
            raise VmError(f"{image} is Linux {read.release}, but its tree is {release} by now: run 'make' there again")
        if self.modules:
            folder = _folder(self.modules, release)
            modules, indexes = _installed(folder), _indexes(folder)
        else:
            modules, indexes = _built(tree), _indexes(tree)
            if "modules.order" in indexes:  # as scripts/Makefile.modinst writes it
                lines = _order(indexes["modules.order"].decode())
                indexes["modules.order"] = "".join(f"kernel/{line}\n" for line in lines).encode()
        return self._found(read, image, modules, indexes, tree, config, f"run 'make modules' in {tree}")

    def _from_image(self, image: Path) -> Kernel:
        read = read_image(image)
        release = read.release
        advice = f"--modules names their folder, lib/modules/{release}"
        found: Path | None
        if self.modules:
            found = _folder(self.modules, release)
        else:
            # /boot/vmlinuz-RELEASE and /lib/modules/RELEASE; or the former is the latter's vmlinuz.
            roots = (*image.parents[1:2], Path("/"))
            places = [root / lib / release for root in roots for lib in _LIBS]
            beside = [image.parent] if image.parent.name == release else []
            found = _first(*beside, *places)
        config = image.parent / f"config-{release}"
        if found is None:
            return self._found(read, image, {}, {}, None, _readable(config), advice)
        configs, build = (found / "config", found / "build/.config", config), _first(found / "build")
        return self._found(read, image, _installed(found), _indexes(found), build, _readable(*configs), advice)

    def _found(
        self,
        read: KernelImage,
        image: Path,
        modules: Mapping[str, Module],
        indexes: Mapping[str, bytes],
        headers: Path | None,
        config: Path | None,
        advice: str,
    ) -> Kernel:
        if self.arch not in (None, read.arch):
            raise VmError(f"the kernel {self.path} is for {read.arch.name}, and the guest is to be {self.arch.name}")
        for module in list(modules.values())[:1]:
            release, blank, _ = modinfo(module.content(), "vermagic").partition(" ")
            if blank and release != read.release:
                raise VmError(
                    f"the module {module.file} is of Linux {release}, and {self.path} is Linux {read.release}: {advice}"
                )
        digest = hashlib.sha256(read.content)
        for name, module in sorted(modules.items()):
            known = module.file.stat()
            digest.update(repr((name, module.place, known.st_size, known.st_mtime_ns)).encode())
        digest.update(repr(sorted(indexes.items())).encode())
        return Kernel(
            name=self.name,
            release=read.release,
            image=image,
            modules=modules,
            indexes=indexes,
            headers=headers,
            id=digest.hexdigest(),
            config_file=config,
            advice=advice,
            arch=read.arch,
        )


KernelChoice: TypeAlias = "DebianKernel | OwnKernel | DebugKernel"

KERNELS = {
    # 7.2 when this was written: the suite moves on, and the metapackage with it.
    "trixie-backports": DebianKernel("trixie-backports", "trixie-backports"),
    "trixie": DebianKernel("trixie", "trixie"),  # 6.12
    "bookworm": DebianKernel("bookworm", "bookworm"),  # 6.1
}
DEFAULT_KERNEL = KERNELS["trixie-backports"]
DEBUG = "debug"
"""The name of the debug kernel (`nicmodel.vm.debug_kernel`); one of a tree of the user's own is "debug:TREE"."""

CHOSEN = "NICMODEL_KERNEL"
"""The variable of the environment that names the kernel of guests that are told of none."""


def kernel_named(name: str, modules: Path | None = None, arch: Arch | None = None) -> KernelChoice:
    """The kernel called `name`.

    Args:
        name: One of `KERNELS`, "debug" or "debug:TREE" (`nicmodel kernel build`), a `linux-image-…` package of
            trixie-backports, the path of a bzImage or of the folder that it was built in, or the release of a kernel
            that is installed on this host.
        modules: For the path of a bzImage: see `OwnKernel`.
        arch: The guest's architecture; None: for a suite this host's own, else the kernel's.

    Raises:
        VmError: There is none, or the package is for another architecture.
    """
    debug, _, tree = name.partition(":")
    if modules and (name in KERNELS or name.startswith("linux-image-") or debug == DEBUG):
        raise VmError(f"--modules is for a kernel of your own: '{name}' has its modules")
    if debug == DEBUG:
        from nicmodel.vm.debug_kernel import DebugKernel

        return for_arch(DebugKernel(Path(tree) if tree else None), arch)
    if name in KERNELS or name.startswith("linux-image-"):
        return for_arch(KERNELS.get(name) or DebianKernel(name, DEFAULT_KERNEL.suite, name), arch)
    if "/" in name or os.path.exists(name):
        return OwnKernel(Path(name), modules, arch)
    if installed := _first(BOOT / f"vmlinuz-{name}", Path("/", _LIBS[0], name, "vmlinuz")):
        return OwnKernel(installed, modules, arch)
    raise VmError(
        f"no kernel '{name}': say one of {', '.join(KERNELS)}, {DEBUG}, or linux-image-<version>, or the path of a"
        f" bzImage or of the folder that it was built in{did_you_mean(name, [*KERNELS, DEBUG])}"
    )


def default_kernel() -> KernelChoice:
    """The kernel of a guest that is told of none: what `CHOSEN` names, else `DEFAULT_KERNEL`.

    Raises:
        VmError: There is no such kernel.
    """
    name = os.environ.get(CHOSEN)
    return kernel_named(name) if name else DEFAULT_KERNEL


def for_arch(kernel: KernelChoice, arch: Arch | None) -> KernelChoice:
    """The choice of a kernel for an architecture: of a suite it is another package, one of your own has to be for it.

    Raises:
        VmError: It is a package for another architecture.
    """
    if arch is None or arch == kernel.arch:
        return kernel
    if isinstance(kernel, OwnKernel):
        return replace(kernel, arch=arch)
    if not isinstance(kernel, DebianKernel):
        raise VmError(f"the kernel '{kernel.name}' is for {kernel.arch.name}, and the guest is to be {arch.name}")
    if kernel.name not in KERNELS:
        raise VmError(f"the package '{kernel.package}' is for {kernel.arch.name}, and the guest is to be {arch.name}")
    return kernel.of(arch)


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _readable(*paths: Path) -> Path | None:
    """The first that this user may read: some distributions keep what is in /boot from others than root."""
    return next((path for path in paths if os.access(path, os.R_OK)), None)


def module_name(file: str) -> str:
    """What the kernel calls a module, by the name of its file: snd_hda for snd-hda.ko.xz."""
    return file.partition(".")[0].replace("-", "_")


def modinfo(content: bytes, field: str) -> str:
    """A field of a module's .modinfo section, NUL-terminated `key=value` strings; empty if it has none."""
    found = re.search(rb"\0" + field.encode() + rb"=([^\0]*)\0", content)
    return found[1].decode(errors="replace") if found else ""


def _indexes(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in _INDEXES if (folder / name).exists()}


def _installed(folder: Path) -> dict[str, Module]:
    """The modules in lib/modules/RELEASE."""
    found: dict[str, Module] = {}
    for file in sorted(_walk(folder), key=lambda file: (_priority(file.relative_to(folder)), file)):
        place = str(file.relative_to(folder))
        found[module_name(file.name)] = Module(file, place[: place.rindex(".ko")] + ".ko")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    # Symbolic links to folders are not followed: `build` and `source` are whole trees.
    for inside, _, files in os.walk(folder):
        yield from (Path(inside, file) for file in files if _MODULE.search(file))


def _priority(place: Path) -> int:
    top = place.parts[0]
    return 1 + _OVERRIDING.index(top) if top in _OVERRIDING else 0


def _built(tree: Path) -> dict[str, Module]:
    """The modules in the folder where they were built."""
    order = tree / "modules.order"
    places = _order(order.read_text("utf-8")) if order.exists() else ()
    return {
        module_name(Path(place).name): Module(tree / place, f"kernel/{place}")
        for place in places
        if (tree / place).exists()
    }


def _order(text: str) -> Sequence[str]:
    """Modules by their paths in the tree; the file has drivers/x.o, and in older kernels kernel/drivers/x.ko."""
    return [re.sub(r"\.o$", ".ko", line.removeprefix("kernel/")) for line in text.splitlines()]


def _folder(given: Path, release: str) -> Path:
    """lib/modules/RELEASE in what --modules names."""
    roots = [given / lib for lib in _LIBS] + [given]
    if found := _first(*(root / release for root in roots)):
        return found
    if next(_walk(given), None) and (given.name == release or _first(given / "kernel", given / "modules.order")):
        return given
    if others := sorted({kernel.parent.name for root in roots for kernel in root.glob("*/kernel")}):
        raise VmError(f"{given} has modules of {', '.join(others)}, but the kernel is {release}")
    raise VmError(f"{given} has no modules: --modules wants lib/modules/{release}, or a folder that has lib/modules")
