"""Coverage of the stock driver, from outside: what runs is recorded, and what does not is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nicmodel.client.control import Control
from nicmodel.vm.coverage import files
from nicmodel.vm.coverage.data import Coverage
from nicmodel.vm.coverage.live import LiveFile
from nicmodel.vm.coverage.recorder import Recorder
from nicmodel.vm.coverage.report import Report
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.layout import Nic
from nicmodel.vm.server import NicServer

pytestmark = pytest.mark.guest

NICMODEL = [sys.executable, "-m", "nicmodel.cli"]
PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
CONNECT = (
    "ip netns add peer; ip link set eth1 netns peer; ip addr add 10.1.0.1/24 dev eth0; "
    "ip -n peer addr add 10.1.0.2/24 dev eth1; ip link set eth0 up; ip -n peer link set eth1 up; "
    "until ping -q -c 1 -W 1 10.1.0.2 >/dev/null; do :; done"
)


def calls(coverage: Coverage, context: str) -> dict[str, int]:
    """How often each function of the driver was entered, of those of which anything ran."""
    [record] = (one for one in coverage.modules.values() if one.name == "gve")  # idpf is there while neither has run
    report = Report(record, files.find(record), None, [context])
    return {one.function.name: one.calls for one in report.functions if one.reached}


def test_the_code_that_runs_is_told_and_no_other(tmp_path: Path) -> None:
    """*Steps*: ping; begin anew; switch header split; load the driver again. *Verify*: each time what has to have run
    has, as often as the kernel says, and what belongs to the other steps has not.
    """
    recorder = Recorder(live=tmp_path / "live")
    with NicServer(["--wire", "link", "--wire", "link"], sockets=2) as server:
        config = GuestConfig(nics=[Nic(path) for path in server.sockets])
        with Guest(config, recorder=recorder) as guest:
            assert guest.accel == "tcg" and guest.why_booted == ""  # it starts from a snapshot as others do
            guest.run(CONNECT)

            counter = "cat /sys/class/net/{}/statistics/tx_packets"
            sent = f"{counter.format('eth0')}; ip netns exec peer {counter.format('eth1')}"
            before = sum(map(int, guest.run(sent).stdout.split()))
            recorder.context("ping")
            guest.run("ping -q -c 20 -i 0.01 10.1.0.2")
            recorder.context("")
            after = sum(map(int, guest.run(sent).stdout.split()))
            during = calls(recorder.coverage(), "ping")
            # The kernel may send a packet of its own (IPv6's neighbour discovery) between counters and contexts.
            assert 40 <= during["gve_tx_dqo"] <= after - before
            assert {"gve_start_xmit", "gve_napi_poll_dqo", "gve_rx_poll_dqo", "gve_tx_poll_dqo"} <= set(during)
            assert not {"gve_probe", "gve_open", "gve_set_hsplit_config", "gve_tx", "gve_rx_poll"} & set(during)
            [record] = recorder.coverage().modules.values()
            assert {"gve_probe", "gve_open"} <= set(calls(recorder.coverage(), ""))

            address = int(guest.run("cat /sys/module/gve/sections/.text").stdout, 16)
            with LiveFile(tmp_path / "live") as live:
                assert files.find(record).locate(live.read().blocks)[1] == [address]

            recorder.reset()
            assert "gve_open" not in calls(recorder.coverage(), "")
            guest.run("ethtool -G eth0 tcp-data-split on")
            assert calls(recorder.coverage(), "")["gve_set_hsplit_config"] == 1

            # Until it lies elsewhere.
            recorder.context("reload")
            guest.run(
                "while [ $(cat /sys/module/gve/sections/.text) = " + f"{address:#x}" + " ] && [ $((tries++)) -lt 20 ]; "
                "do rmmod gve && modprobe gve; done"
            )
            moved = int(guest.run("cat /sys/module/gve/sections/.text").stdout, 16)
            assert moved != address
            with LiveFile(tmp_path / "live") as live:
                assert set(files.find(record).locate(live.read().blocks)[1]) == {address, moved}
            reloaded = calls(recorder.coverage(), "reload")
            assert reloaded["gve_probe"] == reloaded["gve_remove"] >= 2
        # The end of the guest counts, too.
        assert "gve_shutdown" in calls(recorder.coverage(), "reload")
        assert recorder.coverage().lost == 0


@pytest.mark.long
def test_the_command_records_and_can_be_asked_meanwhile(tmp_path: Path) -> None:
    """*Steps*: `nicmodel vm --coverage`; meanwhile reset and report. *Verify*: the report is of what came after."""
    file = str(tmp_path / "a,b.cov")  # a comma parts QEMU's arguments

    def reached() -> set[str]:
        report = subprocess.run([*NICMODEL, "coverage", "report", file, "--json"], capture_output=True, text=True)
        assert report.returncode == 0, report.stderr
        return {one["name"] for one in json.loads(report.stdout)[0]["by_function"] if one["blocks"]["ran"]}

    carrier = "[ $(cat /sys/class/net/eth0/carrier) = {} ]"
    script = f"ip link set eth0 up; until {carrier.format(1)}; do sleep 0.1; done; echo up; "
    script += f"until {carrier.format(0)}; do sleep 0.1; done; ethtool -l eth0 >/dev/null"
    with NicServer(["--wire", "none"]) as server, Control(server.control) as control:
        command = [*NICMODEL, "vm", "--nic", str(server.sockets[0]), "--coverage", file, "--run", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as vm:
            assert vm.stdout and vm.stdout.readline() == "up\n"
            meanwhile = reached()
            subprocess.run([*NICMODEL, "coverage", "reset", file], check=True)
            control.set_link(False)
            assert vm.wait(120) == 0
    assert {"gve_probe", "gve_open"} <= meanwhile and "gve_get_channels" not in meanwhile
    assert "gve_get_channels" in reached() and not {"gve_probe", "gve_open"} & reached()


@pytest.mark.long
def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    [example] = re.findall(r"^```{code-block} python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "test_example.py").write_text(example)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, timeout=600,
    )  # fmt: skip
    assert "1 passed" in run.stdout, run.stdout + run.stderr


@pytest.mark.long
@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["one", "xdist"])
def test_pytest_tells_tests_apart(options: list[str], tmp_path: Path) -> None:
    """*Steps*: a project's tests with the `guest` fixture. *Verify*: each has its own; what the guest does at its start
    and at its end counts for a test, too.
    """
    (tmp_path / "test_it.py").write_text(
        "def test_up(guest): guest.run('ip link set eth0 up')\n"
        "def test_channels(guest): guest.run('ethtool -l eth0')\n"
        "def test_nothing(): pass\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--driver-coverage", *options], cwd=tmp_path, capture_output=True,
        text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "coverage of the driver: nicmodel coverage report driver.cov" in run.stdout
    [record] = Coverage.load(tmp_path / "driver.cov").modules.values()
    assert {"test_it.py::test_up", "test_it.py::test_channels"} <= set(record.contexts)
    whole = {name for context in record.contexts for name in calls(Coverage.load(tmp_path / "driver.cov"), context)}
    assert {"gve_probe", "gve_shutdown"} <= whole
    assert "gve_open" in calls(Coverage.load(tmp_path / "driver.cov"), "test_it.py::test_up")
    channels = calls(Coverage.load(tmp_path / "driver.cov"), "test_it.py::test_channels")
    assert channels["gve_get_channels"] == 1 and "gve_open" not in channels
