"""A driver under work: the stock gve with faults that its authors could have made, built, loaded and tried."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lab import change_source

from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.kernel import DEFAULT_KERNEL
from nicmodel.vm.layout import Nic
from nicmodel.vm.namespace import namespace_for_taps
from nicmodel.vm.server import NicServer

pytestmark = pytest.mark.guest

NICMODEL = [sys.executable, "-m", "nicmodel.cli", "driver"]


def nicmodel(*arguments: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NICMODEL, *map(str, arguments)], capture_output=True, text=True, timeout=timeout)


def masked(text: str) -> str:
    """Without what differs from run to run: times, and how many files were compiled."""
    text = re.sub(r"(?<=✓ build) .*", "", text)
    return re.sub(r"[ (]+[\d.]+ s\b|time \d+ms|no_queue \d+", " T", text)


def example() -> list[str]:
    """The lines that the page for driver authors says one will see.

    It has a tap's addresses, and a ping. Without a tap they are another wire's, and arping is run; no more differs.
    """
    tap = namespace_for_taps()
    if tap is not None:
        tap.close()
    others = re.compile(r"(?!)" if tap is not None else r"192\.0\.2\.|packets transmitted")
    page = (Path(__file__).parents[2] / "docs/driver.md").read_text()
    lines = masked(page.partition("```text\n")[2].partition("```")[0]).splitlines()
    return [line.rstrip() for line in lines if not others.search(line)]


@pytest.mark.long  # builds all of the driver
def test_a_doorbell_with_the_wrong_byte_order(gve: Path) -> None:
    """As in the GQI formats, whose doorbells are big-endian. *Verify*: the checker says so, with the value."""
    change_source(gve / "gve_rx_dqo.c", "iowrite32(", "iowrite32be(", after="void gve_rx_write_doorbell_dqo")
    run = nicmodel("dev", gve, "--once")
    assert run.returncode == 1, run.stdout + run.stderr
    assert re.search(r"✗ command .* status 1", run.stdout)
    assert "DBL-005 error: nic0 rx0, 31 times: the doorbell is set to 536870912 of 1024 entries" in run.stdout
    assert re.search(r"^ +rx +0 frames$", run.stdout, re.MULTILINE)
    for line in example():
        assert line in masked(run.stdout), line


@pytest.mark.long
def test_the_stock_driver_is_good(gve: Path) -> None:
    run = nicmodel("dev", gve, "--once", "--", "ping", "-c", "2", "$REMOTE_V4", "&&", "ethtool", "-i", "$NETIF")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 packets transmitted, 2 received" in run.stdout and "driver: gve" in run.stdout
    assert "✓ good" in run.stdout


@pytest.mark.long
def test_a_buffer_that_is_leaked(gve: Path) -> None:
    """It is not given back once its frame was copied. *Verify*: the device has fewer buffers, by as many as frames."""
    change_source(gve / "gve_rx_dqo.c", "gve_free_buffer(rx, buf_state);", "", after="rx->rx_copybreak_pkt++;")
    run = nicmodel("dev", gve, "--once", "--", "ping", "-q", "-c", "200", "-i", "0.01", "$REMOTE_V4")
    assert run.returncode == 1, run.stdout + run.stderr
    found = re.search(r"buffers +posted before the command and after it: rx0 (\d+) -> (\d+)", run.stdout)
    assert found and int(found[1]) - int(found[2]) > 100


@pytest.mark.long
def test_a_generation_bit_that_is_not_turned(gve: Path) -> None:
    """The driver takes last round's completions for new. *Verify*: it posts what it does not own, says the checker."""
    change_source(gve / "gve_rx_dqo.c", "complq->cur_gen_bit ^= (complq->head == 0);", "")
    run = nicmodel("dev", gve, "--once", "--timeout", "30", "--", "ping", "-q", "-f", "-c", "1300", "$REMOTE_V4")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "RX-BUF-003 error: nic0 rx0" in run.stdout and "RX-BUF-004 error: nic0 rx0" in run.stdout
    assert "RX buffer_id is not allocated" in run.stdout  # the kernel's log


@pytest.mark.long
def test_a_loop_goes_on_after_a_crash_and_a_removal_that_hangs(gve: Path) -> None:
    """*Steps*: an oops when it is loaded; a mended driver whose removal hangs; one that does not compile; a good one.

    *Verify*: each is told, with the place in the source; the next round works; Ctrl-C ends it.
    """
    main = gve / "gve_main.c"
    good = main.read_text()
    change_source(
        main, "\terr = pci_enable_device(pdev);", "\t*(volatile int *)NULL = 1;\n\terr = pci_enable_device(pdev);"
    )
    line = main.read_text()[: main.read_text().index("*(volatile")].count("\n") + 1
    with subprocess.Popen(
        [*NICMODEL, "dev", str(gve)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:
        try:
            assert process.stdout

            def round() -> str:
                said = []
                for text in process.stdout or ():
                    said.append(text)
                    if "Ctrl-C ends" in text:
                        return "".join(said)
                pytest.fail("".join(said))

            said = round()
            assert "✗ load" in said and "BUG: kernel NULL pointer dereference" in said
            assert re.search(rf"gve_probe\+\S+ \[gve\] \(\S+/gve_main\.c:{line}\)", said)
            main.write_text(good)
            change_source(
                main, "\tunregister_netdev(", "\tmsleep(1000000);\n\tunregister_netdev(", "static void gve_remove"
            )
            said = round()
            assert "✓ command" in said and "✗ remove" in said and "does not end: the next is fresh" in said
            main.write_text(good + "nonsense;\n")
            said = round()
            assert re.search(rf"{gve}/gve_main\.c:\d+:1: error: ", said) and "✗ it does not compile" in said
            main.write_text(good)
            assert "✓ good" in round()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()


def test_messages_name_the_users_files(tmp_path: Path) -> None:
    """Of a module of one's own: what the compiler says, then what is built, and that it is built once."""
    (tmp_path / "Makefile").write_text("obj-m += hello.o\n")
    source = tmp_path / "hello.c"
    source.write_text('#include <linux/module.h>\nint x = "text";\nMODULE_LICENSE("GPL");\n')
    run = nicmodel("build", tmp_path)
    assert run.returncode == 1
    assert f"{source}:2:9: error: " in run.stderr and "make: " not in run.stderr
    source.write_text('#include <linux/module.h>\nMODULE_LICENSE("GPL");\n')
    module = Path(nicmodel("build", tmp_path).stdout.strip())
    assert module.name == "hello.ko"
    written = module.stat().st_mtime_ns
    assert nicmodel("build", tmp_path).stdout.strip() == str(module)
    assert module.stat().st_mtime_ns == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "hello.c"]
    (tmp_path / "Makefile").write_text("obj-$(CONFIG_FBNIC) += hello.o\n")
    run = nicmodel("build", tmp_path)
    assert run.returncode == 1 and "CONFIG_FBNIC off. With --make CONFIG_FBNIC=m it is built all the same" in run.stderr
    assert nicmodel("build", tmp_path, "--make", "CONFIG_FBNIC=m").returncode == 0


def test_a_module_instead_of_the_stock_one(tmp_path: Path) -> None:
    """A module of another kernel is refused before a guest starts; the right one is what the NIC is bound to."""
    stock = DEFAULT_KERNEL.find().modules["gve"].content()
    other = tmp_path / "other.ko"
    other.write_bytes(re.sub(rb"(?<=\0vermagic=)\d", b"9", stock))
    with (
        pytest.raises(VmError, match=r"other\.ko was compiled for Linux 9\S+, and the guest's is \d"),
        Guest(GuestConfig(modules=[other])),
    ):
        pass
    own = tmp_path / "own.ko"
    own.write_bytes(stock)
    with (
        NicServer(["--wire", "none"]) as server,
        Guest(GuestConfig(nics=[Nic(server.sockets[0])], modules=[own])) as guest,
    ):
        assert not guest.why_booted
        assert "/updates/gve.ko" in guest.run("modinfo -n gve").stdout
        assert guest.run("ethtool -i eth0").stdout.startswith("driver: gve")
        probes = [line for line in guest.dmesg().splitlines() if "gve 0000" in line and "MAC addr" in line]
        assert len(probes) == 1  # the stock driver has not been there
