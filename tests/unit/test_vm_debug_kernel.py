"""The debug kernel, without building it: its fragments, its name in the cache, what is said if it cannot be built."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_vm_kernel import ALL, RELEASE, WHOLE, bzimage, module, write

from nicmodel.cli.kernel import kernel as command
from nicmodel.vm import debug_kernel, host
from nicmodel.vm.arch import ARM64
from nicmodel.vm.debug_kernel import FRAGMENTS, Built, DebugKernel, dropped, fragments, options
from nicmodel.vm.driver import Driver
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import GuestConfig
from nicmodel.vm.kernel import CHOSEN, DEFAULT_KERNEL, KERNELS, PATIENCE, default_kernel, kernel_named
from nicmodel.vm.packages import Tree
from nicmodel.vm.tools import check_guest_module


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "nicmodel/kernels"


def built(cache: Path, choice: DebugKernel, config: str = "CONFIG_KASAN=y\n" + WHOLE) -> Path:
    """A kernel in the cache, as `build` leaves it."""
    product = cache / f"{choice.key}-0"
    modules = product / f"usr/lib/modules/{RELEASE}"
    write(modules / "vmlinuz", bzimage())
    write(modules / "config", config)
    write(modules / "kernel/drivers/net/gve.ko", module())
    write(product / f"headers-{product.name}/usr/src/linux-headers-{RELEASE}/Makefile", "")
    write(cache / f"{choice.key}.json", json.dumps({"tree": product.name, "versions": {"linux-source-7.3": "1"}}))
    return product


class TestFragments:
    def test_all_that_guests_need_is_asked_for(self) -> None:
        asked = options((FRAGMENTS / "guest.config").read_text())
        brought = {"PAGE_POOL", "GENERIC_ALLOCATOR"}
        assert {need.option for need in ALL} - brought <= {name for name, value in asked.items() if value != "n"}

    def test_no_option_is_named_twice(self) -> None:
        names = re.findall(r"^CONFIG_(\w+)=", fragments(), re.MULTILINE)
        assert len(names) == len(set(names))

    def test_an_option_that_is_not_taken_is_named(self) -> None:
        wanted = options(
            "CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=n\nCONFIG_E=17\n# a word on CONFIG_F=y\n"
        )
        assert wanted == {"A": "y", "B": "m", "C": "n", "D": "n", "E": "17"}
        assert dropped(wanted, options("CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_E=17\n")) == []
        assert sorted(dropped(wanted, options("CONFIG_B=y\nCONFIG_C=y\nCONFIG_E=18\n"))) == [
            "CONFIG_A=y (it is n)",
            "CONFIG_B=m (it is y)",
            "CONFIG_C=n (it is y)",
            "CONFIG_E=17 (it is 18)",
        ]

    def test_they_are_printed(self) -> None:
        assert CliRunner().invoke(command, ["config"]).output == fragments()


class TestNames:
    def test_it_has_a_name(self) -> None:
        assert kernel_named("debug") == DebugKernel()
        assert kernel_named("debug:src/linux") == DebugKernel(Path("src/linux"))
        assert (DebugKernel().name, DebugKernel(Path("src/linux")).name) == ("debug", "debug:src/linux")

    def test_what_it_cannot_be(self) -> None:
        with pytest.raises(VmError, match="--modules is for a kernel of your own"):
            kernel_named("debug", Path("modules"))
        with pytest.raises(VmError, match="the kernel 'debug' is for amd64, and the guest is to be arm64"):
            kernel_named("debug", arch=ARM64)
        with pytest.raises(VmError, match=r"no kernel 'debgu': say one of .*, debug, .*did you mean 'debug'"):
            kernel_named("debgu")

    def test_the_key_is_of_what_is_asked_for(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        keys = {DebugKernel().key, DebugKernel(tmp_path).key, DebugKernel(tmp_path / "other").key}
        assert DebugKernel(tmp_path / "other/..").key in keys
        shutil.copytree(FRAGMENTS, tmp_path / "fragments")
        monkeypatch.setattr(debug_kernel, "FRAGMENTS", tmp_path / "fragments")
        assert DebugKernel().key in keys
        write(tmp_path / "fragments/mine.config", "CONFIG_FBNIC=m\n")
        keys.add(DebugKernel().key)
        assert len(keys) == 4

    def test_a_guest_that_is_told_of_no_kernel_has_the_environments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(CHOSEN, raising=False)
        assert default_kernel() is DEFAULT_KERNEL and GuestConfig().kernel is DEFAULT_KERNEL
        monkeypatch.setenv(CHOSEN, "debug")
        assert default_kernel() == GuestConfig().kernel == DebugKernel()
        assert GuestConfig(kernel=KERNELS["trixie"]).kernel == KERNELS["trixie"]


class TestFinding:
    def test_how_to_build_it_is_said(self) -> None:
        with pytest.raises(VmError, match=r"the kernel 'debug' is not built yet.*'nicmodel kernel build'"):
            DebugKernel().find()
        with pytest.raises(VmError, match=r"'debug:my linux' is not built.*nicmodel kernel build 'my linux'"):
            DebugKernel(Path("my linux")).find()

    def test_as_it_was_built(self, cache: Path) -> None:
        product = built(cache, DebugKernel())
        found = DebugKernel().find()
        assert (found.name, found.release, set(found.modules)) == ("debug", RELEASE, {"gve"})
        assert found.headers == Tree(product / f"headers-{product.name}", {"linux-source-7.3": "1"})
        assert found.config and found.config["KASAN"] == "y"
        check_guest_module(found)

    def test_other_fragments_are_another_kernel(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        built(cache, DebugKernel())
        monkeypatch.setattr(debug_kernel, "fragments", lambda: "CONFIG_KASAN=n\n")
        with pytest.raises(VmError, match="is not built"):
            DebugKernel().find()

    def test_drivers_are_compiled_anew_for_one_that_was_built_again(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("nicmodel.vm.driver.obtain", lambda packages: Tree(tmp_path / "compiler-1", {}))
        folder = write(tmp_path / "mine/Makefile", "obj-m += mine.o\n").parent
        product = built(cache, DebugKernel())
        first = Driver(folder, DebugKernel().find())._tree
        assert Driver(folder, DebugKernel().find())._tree == first
        write(product / f"usr/lib/modules/{RELEASE}/kernel/drivers/net/gve.ko", module(more=b"another"))
        assert Driver(folder, DebugKernel().find())._tree != first

    @pytest.mark.parametrize(
        ("config", "patience"), [("CONFIG_KASAN=y\n", PATIENCE), ("CONFIG_PROVE_LOCKING=y\n", PATIENCE), ("", 1)]
    )
    def test_a_slow_kernel_is_given_time(self, cache: Path, config: str, patience: int) -> None:
        built(cache, DebugKernel(), config)
        assert DebugKernel().find().patience == patience


class TestBuilding:
    @pytest.fixture
    def site(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> debug_kernel._Site:
        """Whose tree is this host: `make` is there, and no kernel's source."""
        monkeypatch.setattr(debug_kernel, "enter", lambda root: [])
        (tmp_path / "site").mkdir()
        with (tmp_path / "lock").open("w") as lock:
            return debug_kernel._Site(tmp_path / "site", os.dup(lock.fileno()), 1)

    def test_what_make_says_is_told(self, site: debug_kernel._Site) -> None:
        with pytest.raises(VmError, match=r"the kernel could not be built \(.*/build\.log has all\):\nmake: \*\*\* "):
            site._make("all")
        assert "make: *** " in site.log.read_text()

    def test_a_full_disk(self, site: debug_kernel._Site, monkeypatch: pytest.MonkeyPatch) -> None:
        full = host.Check("disk space", host.State.BAD, "the disk is full")
        monkeypatch.setattr(host, "is_full", lambda said, folder: full)
        with pytest.raises(VmError, match=r"disk is full\. What has been done stays: build again then"):
            site._make("all")

    def test_no_room_is_said_before(self, site: debug_kernel._Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "free", lambda folder: 1 << 30)
        site.folder.rmdir()
        with pytest.raises(VmError, match=r"3,221 MB are needed"):
            site.prepare([])
        assert not site.folder.exists()

    def test_options_that_are_dropped(self, site: debug_kernel._Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of Debian's source an error; of another one, which may be older, they are told."""
        config = site.root / "build/.config"

        def make(_site: debug_kernel._Site, *words: str, told: Callable[[str], None] = print) -> None:
            write(config, fragments().replace("CONFIG_KASAN=y", "# CONFIG_KASAN is not set"))

        monkeypatch.setattr(debug_kernel._Site, "_make", make)
        assert site.configure(strict=False) == ["CONFIG_KASAN=y (it is n)"]
        with pytest.raises(VmError, match=r"has not taken all .*: CONFIG_KASAN=y \(it is n\)\. Take them out"):
            site.configure(strict=True)

    def test_what_is_no_source(self, tmp_path: Path) -> None:
        with pytest.raises(VmError, match="is no source of a kernel"):
            debug_kernel.build(DebugKernel(tmp_path))

    def test_a_tree_of_ones_own_is_copied_and_what_is_the_same_is_left(self, site: debug_kernel._Site) -> None:
        tree, copy = site.folder.parent / "linux", site.root / "source"
        for name in ("Makefile", "net/core/dev.c", "net/core/old.c", "arch/x86/kernel/vmlinux.lds.S"):
            write(tree / name, name)
        (tree / "net/link").symlink_to("core")
        for name in (".config", ".git/index", "net/core/dev.o", "include/generated/x.h", "modules.order"):
            write(tree / name, "built")
        write(tree / "scripts/basic/fixdep", b"\x7fELF")
        site.copy(tree)
        found = {str(file.relative_to(copy)) for file in copy.rglob("*") if file.is_symlink() or file.is_file()}
        assert found == {"Makefile", "net/core/dev.c", "net/core/old.c", "net/link", "arch/x86/kernel/vmlinux.lds.S"}
        before = {name: (copy / name).lstat() for name in found}
        write(tree / "net/core/dev.c", "changed")
        (tree / "net/core/old.c").unlink()
        site.copy(tree)
        assert (copy / "net/core/dev.c").read_text() == "changed" and not (copy / "net/core/old.c").exists()
        for name in found - {"net/core/dev.c", "net/core/old.c"}:
            assert (copy / name).lstat().st_ino == before[name].st_ino

    def test_few_are_kept(self, cache: Path) -> None:
        for number in range(debug_kernel.KEPT + 2):
            write(cache / f"debug-{number}/file", "")
            os.utime(cache / f"debug-{number}", (number, number))
        debug_kernel._prune("debug-", [cache / "debug-0"])
        left = {path.name for path in cache.iterdir()}
        assert left == {"debug-0", *(f"debug-{number}" for number in range(3, debug_kernel.KEPT + 2))}


def test_the_command(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(cache, DebugKernel())
    asked = []

    def build(choice: DebugKernel, **how: object) -> Built:
        asked.append((choice, how))
        return Built(choice.find(), 754.4, ("CONFIG_A=y (it is n)",))

    monkeypatch.setattr("nicmodel.cli.kernel.build_kernel", build)
    run = CliRunner().invoke(command, ["build", "-j", "3"])
    assert run.exit_code == 0 and asked == [(DebugKernel(), {"jobs": 3, "update": False, "fresh": False})]
    assert f"Linux {RELEASE}, 1 modules: built in 12 min 34 s. To boot it: --kernel debug\n" in run.output
    assert "does not have it as guest/kernel says: CONFIG_A=y (it is n)" in run.output
