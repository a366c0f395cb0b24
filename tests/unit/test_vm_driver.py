"""A driver's folder, before anything is compiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from nicmodel.vm import driver
from nicmodel.vm.channel import Result
from nicmodel.vm.driver import BuildError, Driver
from nicmodel.vm.driver_bench import Verdict, _Try, summary
from nicmodel.vm.errors import VmError
from nicmodel.vm.kernel import Kernel


def kernel(headers: Path | None) -> Kernel:
    return Kernel("own", "6.1.0", Path("/nowhere"), {}, {}, headers, "id", None, "")


def test_results_of_a_build_are_no_sources(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("Makefile", "a.c", "a.h", "sub/b.c", "a.o", "a.ko", "a.mod.c", ".a.o.cmd", "modules.order", ".git/x"):
        (tmp_path / name).write_text(name)
    assert sorted(driver._sources(tmp_path)) == ["Makefile", "a.c", "a.h", "sub/b.c"]


def test_a_folder_with_too_much_in_it_is_no_drivers(tmp_path: Path) -> None:
    for number in range(driver._MAX_FILES + 1):
        (tmp_path / f"{number}.c").touch()
    with pytest.raises(BuildError, match=r"more than 2000 files .*: give the folder of one driver"):
        driver._sources(tmp_path)


def test_what_cannot_be_built_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="there is no such folder"):
        Driver(tmp_path / "nowhere", kernel(None))
    with pytest.raises(VmError, match=r"neither Makefile nor Kbuild: .*obj-m \+= NAME\.o"):
        Driver(tmp_path, kernel(None))
    (tmp_path / "Kbuild").write_text("obj-m += a.o\n")
    with pytest.raises(VmError, match=r"nothing to compile modules for own with: .*/lib/modules/6\.1\.0/build"):
        Driver(tmp_path, kernel(None))


def test_folders_that_may_have_been_meant(tmp_path: Path) -> None:
    """A project's, with drivers below; what has a Makefile for something else, or lies too deep, is not named."""
    for name, text in {
        "src/Makefile": "obj-m += a.o\n", "linux/gve/Kbuild": "obj-$(CONFIG_GVE) += gve.o\n",
        "docs/Makefile": "all:\n\ttouch x\n", ".git/Makefile": "obj-m += a.o\n", "a/b/c/d/Makefile": "obj-m += a.o\n",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(VmError) as raised:
        Driver(tmp_path, kernel(None))
    assert str(raised.value).endswith(f"; there is one in {tmp_path}/linux/gve, {tmp_path}/src")


#: What is more than kbuild reads: it makes a header, and calls make for another folder.
OWN_MAKEFILE = """
KDIR ?= /lib/modules/$(shell uname -r)/build
all:
\techo '#define N 1' > src/made.h
\t$(MAKE) -C $(KDIR) M=$(CURDIR)/src modules
"""


def test_a_makefile_that_does_more_than_kbuild_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """*Steps*: build a driver whose Makefile makes a header and calls make for its folder `src`, as the kernel's make
    does it, and by its own Makefile; the kernel's is one that only looks for the header.
    *Verify*: the first fails, and says what to do; the second makes the module.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("nicmodel.vm.host.program", lambda name: name)  # what compilers bring along is not needed
    folder, headers = tmp_path / "driver", tmp_path / "headers"
    for name, text in {
        "driver/Makefile": OWN_MAKEFILE, "driver/src/Makefile": "obj-m += a.o\n", "driver/src/a.c": "",
        "config": "CONFIG_DEBUG_INFO=y\n",
        "headers/Makefile": "modules:\n\tcat $(M)/made.h\n\ttouch $(M)/a.ko\n\techo a.o > $(M)/modules.order\n",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    own = replace(kernel(headers), config_file=tmp_path / "config")
    with pytest.raises(BuildError, match=r"made\.h: No such file(.*\n)+.*/driver/Makefile does more .*--own-makefile"):
        Driver(folder, own).build()
    built = Driver(folder, own, {"KDIR": str(headers)}, own_makefile=True).build()
    assert [module.relative_to(module.parents[1]) for module in built.modules] == [Path("src/a.ko")]
    assert not (folder / "src/made.h").exists()


def test_drivers_of_tests_take_nobodys_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """*Steps*: build more drivers than are kept, below the folder for temporary files, beside one that is not there.
    *Verify*: of the former so many are kept as can be, and the latter as well.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr("nicmodel.vm.host.program", lambda name: name)
    for number, home in enumerate([tmp_path / "home", *[tmp_path / "tmp"] * (driver.KEPT + 3)]):
        folder = home / f"driver{number}"
        folder.mkdir(parents=True)
        (folder / "Makefile").write_text("obj-m += a.o\n")
        Driver(folder, kernel(tmp_path))._prepare()
    kept = [tree.parent.name for tree in (tmp_path / "cache/nicmodel").glob("*drivers/driver*") if tree.is_dir()]
    assert (kept.count("drivers"), kept.count("temporary-drivers")) == (1, driver.KEPT)


def test_the_device_is_summed_up() -> None:
    def nic(frames: int, tail: int, admin: dict[str, int]) -> dict[str, object]:
        queue = {
            "queue": 0,
            "frames": frames,
            "active": 1,
            "buffer_tail": tail,
            "buffer_head": 0,
            "positions": 1024,
        }
        return {
            "admin": admin, "rx_queues": [queue], "tx_queues": [{"queue": 0, "packets": 1}], "drops": {},
            "interrupts": [frames], "dma_faults": frames // 10,
        }  # fmt: skip

    before, up = nic(5, 0, {"A PASSED": 1}), nic(5, 992, {})
    told = summary(before, up, nic(25, 972, {}), nic(25, 0, {"A PASSED": 3, "B INVALID_ARGUMENT": 1}))
    assert told == {
        "admin": "3 commands, refused: B INVALID_ARGUMENT 1",
        "rx": "20 frames (rx0 20)",
        "tx": "0 packets",
        "drops": "none",
        "interrupts": "25",
        "buffers": "posted before the command and after it: rx0 992 -> 972",
        "DMA faults": "2",
    }


def test_what_a_driver_has_leaked_is_told_of_its_own_only(tmp_path: Path) -> None:
    """By the functions that have asked for it; the kernel's own leaks are nobody's business here."""
    text = "unreferenced object 0x1 (size 8):\n  backtrace (crc 0):\n    kmalloc+0x1/0x2\n    open+0x1/0x2 [{}]\n"
    own, others = text.format("mine"), text.format("theirs")

    (tmp_path / "config").write_text("CONFIG_DEBUG_KMEMLEAK=y\n")

    class Guest:
        kernel = Kernel("own", "6.1.0", Path("/nowhere"), {}, {}, None, "id", tmp_path / "config", "")

        def run(self, command: list[str], **_: object) -> Result:
            return Result(others + own + others, "", 0)

    tried = _Try(cast("Any", Guest()), cast("Any", None), "0000:01:00.0", Verdict(), print, 15)
    tried._loaded = ["mine"]
    assert tried._leaks() == (False, "1 object that nothing points to any more", "")
    assert tried._leaked == own.splitlines()
    tried._loaded = ["another"]
    assert tried._leaks() == (True, "none", "")
