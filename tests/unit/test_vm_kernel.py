"""Kernels on this host: what is read from an image, what is found beside it, and what is said of one that will not do.

Images are made here by Linux' boot protocol (Documentation/arch/x86/boot.rst), trees as `make` leaves them.
"""

import bz2
import gzip
import lzma
import os
import re
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nicmodel.gvnic import registers as gvnic
from nicmodel.idpf import registers as idpf
from nicmodel.vm import image, kernel
from nicmodel.vm.arch import AMD64, ARM64
from nicmodel.vm.bzimage import BzImage
from nicmodel.vm.driver import Driver
from nicmodel.vm.errors import VmError
from nicmodel.vm.kernel import (
    BZIMAGE,
    DEFAULT_KERNEL,
    KERNELS,
    DebianKernel,
    Kernel,
    OwnKernel,
    for_arch,
    kernel_named,
)
from nicmodel.vm.needs import (
    DEVMEM,
    DRIVERS,
    GUEST,
    GVE,
    IDPF,
    MACHINE,
    NODE,
    SHARE,
    Need,
    driverless,
    lacking,
    require,
    unknown,
)
from nicmodel.vm.tools import check_guest_module

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RELEASE = "7.3.0-rc2-00012-gdeadbeef-dirty"
BANNER = f"{RELEASE} (me@host) #7 SMP PREEMPT_DYNAMIC Mon Jan  5 10:00:00 UTC 2026"
BANNER_ARM64 = f"Linux version {BANNER}".encode()
STOCK = (*GUEST, *MACHINE[AMD64], *DRIVERS.values(), *SHARE)
ALL = (*STOCK, *NODE, *DEVMEM)
WHOLE = "".join(f"CONFIG_{need.option}=y\n" for need in STOCK) + "CONFIG_X86_64=y\n"


def bzimage(banner: str = BANNER, payload: bytes = b"", **fields: int) -> bytes:
    """An image of one sector of set-up code, the banner in it, and a compressed kernel."""
    values = {"setup_sects": 1, "loadflags": 1, "version": 0x20F, "xloadflags": 1, "kernel_version": 0x100} | fields
    content = bytearray(1024)
    content[0x1F1] = values["setup_sects"]
    content[0x1FE:0x206] = b"\x55\xaa\xeb\x6cHdrS"
    struct.pack_into("<H", content, 0x206, values["version"])
    struct.pack_into("<H", content, 0x20E, values["kernel_version"])
    content[0x211] = values["loadflags"]
    struct.pack_into("<H", content, 0x236, values["xloadflags"])
    struct.pack_into("<II", content, 0x248, 16, len(payload))
    text = banner.encode("latin-1") + b"\0"
    content[0x300 : 0x300 + len(text)] = text
    return bytes(content) + bytes(16) + payload + b"what follows"


def module(release: str = RELEASE, more: bytes = b"") -> bytes:
    return b"\x7fELF" + more + b"\0depends=\0vermagic=" + release.encode() + b" SMP preempt mod_unload \0"


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def built_tree(tree: Path, config: str = WHOLE) -> Path:
    """A tree with two modules, as `make` leaves it."""
    write(tree / BZIMAGE, bzimage())
    write(tree / "Kbuild", "")
    write(tree / ".config", config)
    write(tree / "include/config/auto.conf", config)
    write(tree / "include/config/kernel.release", RELEASE + "\n")
    write(tree / "modules.order", "fs/fuse/virtiofs.o\ndrivers/net/ethernet/google/gve/gve.o\nnever/built.o\n")
    write(tree / "modules.builtin", "kernel/drivers/char/virtio_console.ko\nkernel/net/core/so-me.ko\n")
    write(tree / "fs/fuse/virtiofs.ko", module())
    write(tree / "drivers/net/ethernet/google/gve/gve.ko", module())
    return tree


def installed(root: Path, release: str = RELEASE, content: bytes | None = None) -> Path:
    """A root folder with a kernel installed."""
    write(root / f"boot/vmlinuz-{release}", bzimage(BANNER.replace(RELEASE, release)))
    write(root / f"boot/config-{release}", WHOLE)
    write(root / f"usr/lib/modules/{release}/kernel/net/gve.ko", module(release))
    return root


class TestImages:
    def test_release(self, tmp_path: Path) -> None:
        assert BzImage.read(write(tmp_path / "bzImage", bzimage())).release == RELEASE

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "is no kernel image for x86 or arm64: give a vmlinuz"),
            (b"hello", "is no kernel image for x86 or arm64: give a vmlinuz"),
            (bzimage()[:0x240], "is no kernel image for x86 or arm64: give a vmlinuz"),
            (b"MZ" + bytes(0x36) + b"RSC\x05", "but an image for RISC-V"),
            (b"MZ\0\0zimg" + bytes(99), "but an image for another architecture"),
            (b"MZ" + bytes(999), "such as a unified kernel image"),
            (b"\x7fELF" + bytes(999), "but an ELF file, such as vmlinux: give a vmlinuz"),
            (gzip.compress(b"x", mtime=0), "but compressed by gzip: give a vmlinuz"),
            (bzimage(xloadflags=0), "is a kernel image for 32-bit x86"),
            (bzimage(loadflags=0), "is a kernel image for 32-bit x86"),
            (bzimage(version=0x206), "is a kernel image for 32-bit x86"),
            (bzimage(kernel_version=0), "does not tell its kernel's release"),
            (bzimage(""), "does not tell its kernel's release"),
            (bzimage("7.3\x1b[31m"), "does not tell its kernel's release"),
        ],
    )
    def test_what_is_no_image(self, tmp_path: Path, content: bytes, words: str) -> None:
        with pytest.raises(VmError) as error:
            BzImage.read(write(tmp_path / "file", content))
        assert words in str(error.value)

    @pytest.mark.parametrize(
        "compress",
        [
            gzip.compress,
            bz2.compress,
            lzma.compress,
            lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
            zstd.compress,
        ],
    )
    def test_configuration(self, tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
        """Behind all of them but gzip the kernel's build appends the size (scripts/Makefile.lib, size_append)."""
        kernel = b"code" * 999 + b"IKCFG_ST" + gzip.compress(WHOLE.encode()) + b"IKCFG_ED" + b"data" * 99
        size = b"" if compress is gzip.compress else struct.pack("<I", len(kernel))
        read = BzImage.read(write(tmp_path / "bzImage", bzimage(payload=compress(kernel) + size)))
        assert read.configuration() == WHOLE

    @pytest.mark.parametrize(
        "payload",
        [
            gzip.compress(b"no configuration in it", mtime=0),
            b"\x02\x21\x4c\x18 LZ4, for which Python has no library",
            gzip.compress(b"x" * 9999, mtime=0)[:50],
            b"\x28\xb5\x2f\xfd broken",
            gzip.compress(b"IKCFG_ST and no more", mtime=0),
            b"",
        ],
    )
    def test_no_configuration(self, tmp_path: Path, payload: bytes) -> None:
        assert BzImage.read(write(tmp_path / "bzImage", bzimage(payload=payload))).configuration() is None


def arm64_image(banner: bytes = BANNER_ARM64, config: str = "") -> bytes:
    """An arm64 kernel by its boot protocol (Documentation/arch/arm64/booting.rst)."""
    built_in = b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED" if config else b""
    return b"MZ" + bytes(0x36) + b"ARM\x64" + bytes(99) + banner + built_in


class TestArm64:
    @pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["Image", "Image.gz"])
    def test_an_image(self, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
        found = OwnKernel(write(tmp_path / "Image", pack(arm64_image(config="CONFIG_GVE=m\n")))).find()
        assert (found.release, found.arch, found.config) == (RELEASE, ARM64, {"GVE": "m"})

    def test_no_configuration(self, tmp_path: Path) -> None:
        assert OwnKernel(write(tmp_path / "Image", arm64_image())).find().config is None

    def test_without_a_greeting(self, tmp_path: Path) -> None:
        with pytest.raises(VmError, match="does not tell its kernel's release"):
            OwnKernel(write(tmp_path / "Image", arm64_image(b"Linux version ?"))).find()

    def test_a_tree(self, tmp_path: Path) -> None:
        tree = built_tree(tmp_path, "CONFIG_ARM64=y\nCONFIG_GVE=y\n")
        with pytest.raises(VmError, match="is not built"):
            (tree / BZIMAGE).unlink()
            OwnKernel(tree).find()
        image = write(tree / "arch/arm64/boot/Image", arm64_image())
        for path in (tree, image):
            found = OwnKernel(path).find()
            assert (found.image, found.arch, found.headers) == (image, ARM64, tree)

    def test_what_is_of_another_architecture_than_asked_for(self, tmp_path: Path) -> None:
        file = write(tmp_path / "bzImage", bzimage())
        with pytest.raises(VmError, match="bzImage is for amd64, and the guest is to be arm64"):
            kernel_named(str(file), arch=ARM64).find()
        with pytest.raises(VmError, match="'linux-image-arm64-16k' is for arm64, and the guest is to be amd64"):
            kernel_named("linux-image-arm64-16k", arch=AMD64)

    def test_debians_tell_it_by_their_names(self) -> None:
        for name, arch in {
            "linux-image-cloud-arm64": ARM64,
            "linux-image-7.3.4+deb13-arm64-16k": ARM64,
            "linux-image-7.3.4+deb13-cloud-amd64": AMD64,
            "linux-image-rt-amd64": AMD64,
        }.items():
            kernel = kernel_named(name)
            assert isinstance(kernel, DebianKernel)
            assert (kernel.arch, kernel.packages.architecture) == (arch, arch.name)

    def test_a_suites_is_another_package(self) -> None:
        kernel = kernel_named("trixie", arch=ARM64)
        assert isinstance(kernel, DebianKernel)
        assert (kernel.package, kernel.suite) == ("linux-image-cloud-arm64", "trixie")
        assert for_arch(kernel, AMD64) == KERNELS["trixie"]
        assert for_arch(kernel, None) is kernel

    def test_what_its_machine_needs(self, tmp_path: Path) -> None:
        text = "".join(f"CONFIG_{need.option}=y\n" for need in (*GUEST, *MACHINE[AMD64]))
        found = OwnKernel(write(tmp_path / "Image", arm64_image(config=text))).find()
        assert lacking(found, GUEST) == []
        assert [words.split()[0] for words in lacking(found, MACHINE[ARM64])] == [
            "CONFIG_SERIAL_AMBA_PL011_CONSOLE",
            "CONFIG_PCI_HOST_GENERIC",
        ]

    def test_its_modules_are_not_compiled_here(self, tmp_path: Path) -> None:
        kernel = OwnKernel(write(tmp_path / "Image", arm64_image())).find()
        write(tmp_path / "driver/Makefile", "obj-m += x.o\n")
        with pytest.raises(VmError, match=r"compiled for amd64 only, and the kernel .*/Image is for arm64"):
            Driver(tmp_path / "driver", kernel)
        with pytest.raises(VmError, match="is built for amd64 only, and this guest is arm64: --device-memory"):
            check_guest_module(kernel)


class TestTrees:
    def test_as_make_leaves_it(self, tmp_path: Path) -> None:
        tree = built_tree(tmp_path / "linux")
        found = OwnKernel(tree).find()
        assert (found.release, found.image, found.headers) == (RELEASE, tree / BZIMAGE, tree)
        assert {name: one.place for name, one in found.modules.items()} == {
            "virtiofs": "kernel/fs/fuse/virtiofs.ko",
            "gve": "kernel/drivers/net/ethernet/google/gve/gve.ko",
        }
        assert found.indexes["modules.order"].startswith(b"kernel/fs/fuse/virtiofs.ko\nkernel/drivers/net/")
        assert found.built_in == {"virtio_console", "so_me"}
        assert found.config is not None and found.config["GVE"] == "y"
        require(found, (*GUEST, *DRIVERS.values(), *SHARE))

    def test_older_kernels_list_modules_as_installed(self, tmp_path: Path) -> None:
        tree = built_tree(tmp_path)
        write(tree / "modules.order", "kernel/fs/fuse/virtiofs.ko\n")
        assert [one.place for one in OwnKernel(tree).find().modules.values()] == ["kernel/fs/fuse/virtiofs.ko"]

    def test_its_image_is_the_tree(self, tmp_path: Path) -> None:
        tree = built_tree(tmp_path)
        (tree / "arch/x86_64/boot").mkdir(parents=True)
        (tree / "arch/x86_64/boot/bzImage").symlink_to("../../x86/boot/bzImage")
        for path in (tree / BZIMAGE, tree / "arch/x86_64/boot/bzImage"):
            assert set(OwnKernel(path).find().modules) == {"virtiofs", "gve"}

    @pytest.mark.parametrize(
        ("gone", "words"),
        [
            (["arch/x86/boot/bzImage"], "is not built: run 'make' there"),
            (["include/config/kernel.release"], "is not built: run 'make' there"),
            (["include/config/auto.conf", ".config"], "is not built: run 'make' there"),
            (["arch/x86/boot/bzImage", "include/config/kernel.release", "Kbuild", ".config"], "is no folder in which"),
        ],
    )
    def test_not_built(self, tmp_path: Path, gone: list[str], words: str) -> None:
        tree = built_tree(tmp_path)
        for name in gone:
            (tree / name).unlink()
        with pytest.raises(VmError, match=words):
            OwnKernel(tree).find()

    def test_another_architecture(self, tmp_path: Path) -> None:
        with pytest.raises(VmError, match="is configured for another architecture: guests are amd64 or arm64"):
            OwnKernel(built_tree(tmp_path, "CONFIG_RISCV=y\n")).find()

    def test_an_image_that_is_older_than_the_tree(self, tmp_path: Path) -> None:
        tree = built_tree(tmp_path)
        write(tree / "include/config/kernel.release", "7.4.0\n")
        with pytest.raises(VmError, match=rf"is Linux {RELEASE}, but its tree is 7\.4\.0 by now: run 'make'"):
            OwnKernel(tree).find()

    def test_modules_of_another_build(self, tmp_path: Path) -> None:
        tree = built_tree(tmp_path)
        for name in ("fs/fuse/virtiofs.ko", "drivers/net/ethernet/google/gve/gve.ko"):
            write(tree / name, module("6.1.0"))
        with pytest.raises(VmError, match=r"is of Linux 6\.1\.0, and .* is Linux 7\.3"):
            OwnKernel(tree).find()


class TestInstalled:
    def test_modules_and_configuration_are_found_by_the_release(self, tmp_path: Path) -> None:
        root = installed(installed(tmp_path), "6.1.0")
        found = OwnKernel(root / f"boot/vmlinuz-{RELEASE}").find()
        assert found.modules["gve"].file == root / f"usr/lib/modules/{RELEASE}/kernel/net/gve.ko"
        assert found.config_file == root / f"boot/config-{RELEASE}"
        assert found.headers is None

    def test_an_image_in_its_folder_of_modules(self, tmp_path: Path) -> None:
        folder = tmp_path / RELEASE
        write(folder / "vmlinuz", bzimage())
        write(folder / "kernel/gve.ko", module())
        for path in (folder, folder / "vmlinuz"):
            assert set(OwnKernel(path).find().modules) == {"gve"}

    @pytest.mark.parametrize(
        ("suffix", "compress"),
        [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd.compress)],
    )
    def test_modules_of_any_compression(self, tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
        root = installed(tmp_path)
        folder = root / f"usr/lib/modules/{RELEASE}"
        (folder / "kernel/net/gve.ko").unlink()
        write(folder / f"kernel/net/nft-x.ko{suffix}", compress(module(more=b"this one")))
        one = OwnKernel(root / f"boot/vmlinuz-{RELEASE}").find().modules["nft_x"]
        assert (one.place, one.content()) == ("kernel/net/nft-x.ko", module(more=b"this one"))

    def test_a_broken_module(self, tmp_path: Path) -> None:
        root = installed(tmp_path)
        write(root / f"usr/lib/modules/{RELEASE}/kernel/a.ko.zst", b"nonsense")
        with pytest.raises(VmError, match=r"the module .*a\.ko\.zst cannot be decompressed"):
            OwnKernel(root / f"boot/vmlinuz-{RELEASE}").find()

    def test_updates_come_first(self, tmp_path: Path) -> None:
        root = installed(tmp_path)
        write(root / f"usr/lib/modules/{RELEASE}/updates/dkms/gve.ko", module())
        assert OwnKernel(root / f"boot/vmlinuz-{RELEASE}").find().modules["gve"].place == "updates/dkms/gve.ko"

    def test_its_headers(self, tmp_path: Path) -> None:
        root = installed(tmp_path)
        write(root / "usr/src/headers/.config", "CONFIG_X86_64=y\n")
        write(root / "usr/src/headers/scripts/module.ko", module("another"))
        build = root / f"usr/lib/modules/{RELEASE}/build"
        build.symlink_to(root / "usr/src/headers")
        found = OwnKernel(root / f"boot/vmlinuz-{RELEASE}").find()
        assert (found.headers, set(found.modules)) == (build, {"gve"})

    def test_by_its_release(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = installed(tmp_path)
        monkeypatch.setattr(kernel, "BOOT", root / "boot")
        assert kernel_named(RELEASE) == OwnKernel(root / f"boot/vmlinuz-{RELEASE}")


class TestModulesFolder:
    @pytest.mark.parametrize("inside", ["", "lib/modules/", "usr/lib/modules/"])
    @pytest.mark.parametrize("named", [True, False], ids=["itself", "its parent"])
    def test_what_it_may_be(self, tmp_path: Path, inside: str, named: bool) -> None:
        file = write(tmp_path / "bzImage", bzimage())
        folder = tmp_path / "root" / f"{inside}{RELEASE}"
        write(folder / "kernel/gve.ko", module())
        given = folder if named else tmp_path / "root"
        assert set(OwnKernel(file, given).find().modules) == {"gve"}

    def test_one_of_another_name(self, tmp_path: Path) -> None:
        file = write(tmp_path / "bzImage", bzimage())
        write(tmp_path / "mine/kernel/gve.ko", module())
        assert set(OwnKernel(file, tmp_path / "mine").find().modules) == {"gve"}
        write(tmp_path / "mine/kernel/gve.ko", module("6.1.0"))
        with pytest.raises(VmError, match=r"is of Linux 6\.1\.0, and .* is Linux 7\.3.*--modules names their folder"):
            OwnKernel(file, tmp_path / "mine").find()

    def test_another_release(self, tmp_path: Path) -> None:
        file = write(tmp_path / "bzImage", bzimage())
        root = installed(installed(tmp_path / "root", "6.1.0"), "6.12.1")
        with pytest.raises(VmError, match=rf"has modules of 6\.1\.0, 6\.12\.1, but the kernel is {RELEASE}"):
            OwnKernel(file, root).find()

    @pytest.mark.parametrize("name", ["nowhere", "empty", "bzImage"])
    def test_no_modules(self, tmp_path: Path, name: str) -> None:
        file = write(tmp_path / "bzImage", bzimage())
        (tmp_path / "empty").mkdir()
        with pytest.raises(VmError, match=rf"has no modules: --modules wants lib/modules/{RELEASE}"):
            OwnKernel(file, tmp_path / name).find()


class TestIdentity:
    def test_by_content(self, tmp_path: Path) -> None:
        tree = built_tree(tmp_path)
        first = OwnKernel(tree).find().id
        os.utime(tree / BZIMAGE, (1, 1))
        assert OwnKernel(tree).find().id == first
        old = (tree / BZIMAGE).stat()
        write(tree / BZIMAGE, bzimage(BANNER.replace("#7", "#8")))
        os.utime(tree / BZIMAGE, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert OwnKernel(tree).find().id != first

    def test_of_modules(self, tmp_path: Path) -> None:
        tree = built_tree(tmp_path)
        first = OwnKernel(tree).find().id
        os.utime(tree / "fs/fuse/virtiofs.ko", (1, 1))
        second = OwnKernel(tree).find().id
        (tree / "fs/fuse/virtiofs.ko").unlink()
        assert len({first, second, OwnKernel(tree).find().id}) == 3


class TestNeeds:
    def kernel(self, tmp_path: Path, config: str | None, **more: object) -> Kernel:
        file = None if config is None else write(tmp_path / "config", config)
        fields = {"modules": {}, "indexes": {}} | more
        return Kernel(
            name="mine", release=RELEASE, image=write(tmp_path / "bzImage", bzimage()), headers=None, id="",
            config_file=file, advice="run 'make modules'", **fields,  # type: ignore[arg-type]
        )  # fmt: skip

    def test_options_are_named(self, tmp_path: Path) -> None:
        found = self.kernel(tmp_path, WHOLE.replace("CONFIG_DEVTMPFS=y", "# CONFIG_DEVTMPFS is not set"))
        with pytest.raises(VmError, match=rf"mine \(Linux {RELEASE}\) lacks what .*: CONFIG_DEVTMPFS \(/dev\)$"):
            require(found, GUEST)

    def test_a_module_that_is_not_there(self, tmp_path: Path) -> None:
        found = self.kernel(tmp_path, WHOLE.replace("CONFIG_GVE=y", "CONFIG_GVE=m"))
        [said] = lacking(found, [GVE])
        assert said == "the module gve (the driver of a gVNIC; run 'make modules')"

    def test_a_module_that_is_there_counts_whatever_the_configuration_says(self, tmp_path: Path) -> None:
        one = kernel.Module(tmp_path / "gve.ko", "kernel/gve.ko")
        assert not lacking(self.kernel(tmp_path, "CONFIG_GVE=m\n", modules={"gve": one}), [GVE])

    def test_without_a_configuration_the_lists_of_modules_tell(self, tmp_path: Path) -> None:
        indexes = {"modules.builtin": b"kernel/drivers/char/virtio_console.ko\n"}
        found = self.kernel(tmp_path, None, indexes=indexes)
        assert lacking(found, (Need("VIRTIO_CONSOLE", "", "virtio_console"), Need("DEVTMPFS", ""))) == []
        assert lacking(found, SHARE) == ["CONFIG_VIRTIO_FS (folders of the host's)"]

    def test_what_cannot_be_told_is_told_when_it_does_not_boot(self, tmp_path: Path) -> None:
        found = self.kernel(tmp_path, None)
        require(found, (*GUEST, *DRIVERS.values()))
        assert "a guest needs CONFIG_64BIT, " in unknown(found)

    def test_drivers_are_told_by_the_identities_of_their_devices(self) -> None:
        assert DRIVERS == {
            (gvnic.VENDOR_GOOGLE, gvnic.DEVICE_GVNIC): GVE,
            (idpf.VENDOR_INTEL, idpf.DEVICE_IDPF_VF): IDPF,
        }

    def test_a_driver_is_missed_where_there_is_its_nic(self, tmp_path: Path) -> None:
        found = self.kernel(tmp_path, WHOLE.replace("CONFIG_GVE=y", ""))
        a_gvnic, an_idpf, another = (0x1AE0, 0x0042), (0x8086, 0x145C), (0x1AF4, 0x1041)
        assert driverless(found, [an_idpf, another]) == []
        assert driverless(found, [another, a_gvnic, an_idpf, a_gvnic]) == ["CONFIG_GVE (the driver of a gVNIC)"]

    def test_their_modules_are_in_every_image(self) -> None:
        assert {need.module for need in ALL if need.module} <= set(image.MODULES)

    def test_the_documentations_fragment_has_all(self) -> None:
        text = (Path(__file__).parents[2] / "docs/guest.md").read_text()
        fragment = set(re.findall(r"^CONFIG_(\w+)=[ym]$", text, re.MULTILINE))
        brought = {"NET_DEVMEM"}
        assert {need.option for need in ALL} - brought <= fragment


class TestNames:
    def test_of_debian(self) -> None:
        assert kernel_named("trixie") is KERNELS["trixie"]
        pinned = kernel_named("linux-image-7.2.9+deb13-cloud-amd64")
        assert isinstance(pinned, DebianKernel)
        assert (pinned.suite, pinned.package) == (DEFAULT_KERNEL.suite, "linux-image-7.2.9+deb13-cloud-amd64")

    def test_of_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(built_tree(tmp_path))
        assert kernel_named(".") == OwnKernel(Path("."))
        assert kernel_named(".").find().release == RELEASE
        assert kernel_named("arch/x86/boot/bzImage", Path("x")) == OwnKernel(BZIMAGE, Path("x"))

    def test_of_none(self, tmp_path: Path) -> None:
        with pytest.raises(VmError, match=r"no kernel '5\.10': say one of trixie-backports"):
            kernel_named("5.10")
        with pytest.raises(VmError, match=r"no kernel .*/bzImage: there is no such file or folder"):
            kernel_named(f"{tmp_path}/bzImage").find()
        with pytest.raises(VmError, match="--modules is for a kernel of your own"):
            kernel_named("trixie", tmp_path)


def test_images_that_nobody_uses_are_deleted(tmp_path: Path) -> None:
    """By age, and the oldest of more than are kept; locks stay."""
    now = time.time()
    for number in range(image.KEPT + 2):
        os.utime(write(tmp_path / f"{number}.initrd", ""), (now - number, now))
    for name, age in (("userland-a.cpio", 0.0), ("userland-b.cpio", image.UNUSED_SECONDS + 60.0), ("a.lock", 1e9)):
        os.utime(write(tmp_path / name, ""), (now - age, now))
    image._prune(tmp_path)
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"userland-a.cpio", "a.lock", *(f"{number}.initrd" for number in range(image.KEPT))}
