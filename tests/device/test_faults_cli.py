"""Faults by the command line and the control socket, and what is written about them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from nicmodel.client.control import Control, ControlError
from nicmodel.faults import Scenario
from nicmodel.gvnic.faults.kinds import KINDS
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.vm.server import NicServer

from .frames import NIC_MAC, tcp
from .test_control_commands import run

PAGE = (Path(__file__).parents[2] / "docs" / "faults.md").read_text()
COMMANDS = re.findall(r"^ +nicmodel (fault .*--control \S+)", PAGE, re.MULTILINE)
[SCENARIO] = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fault from the server's beginning."""
    path = tmp_path_factory.mktemp("faults") / "scenario.toml"
    path.write_text('[[fault]]\nname = "tx-never"\ncount = 1\n')
    return path


@pytest.fixture(scope="module")
def server(scenario: Path) -> Iterator[NicServer]:
    with NicServer(["--mac", NIC_MAC, "--faults", str(scenario)]) as server:
        yield server


@pytest.fixture
def control(server: NicServer) -> Iterator[str]:
    yield str(server.control)
    run("fault", "end", "--control", str(server.control))


def test_a_scenario_from_the_beginning(server: NicServer, control: str) -> None:
    assert re.fullmatch(r"1: tx-never active, 0 hits; .*count=1.*\n", run("fault", "list", "--control", control))
    with Driver(str(server.sockets[0])) as driver:
        driver.probe()
        driver.open(rx_queues=1, tx_queues=1)
        driver.send(0, tcp())
        driver.device_status()
        assert driver.poll_tx(0) == []
    assert run("fault", "list", "--control", control) == ""
    with Control(control) as asked:
        assert asked.stat()[0]["events"]["fault tx-never"] == 1


def test_faults_come_and_go(control: str) -> None:
    number = run("fault", "add", "wire-drop", "probability=0.01", "duration=1000", "--control", control).strip()
    other = run("fault", "add", "rx-late", "start=1000", "--seed", "3", "--control", control).strip()
    listed = run("fault", "list", "--control", control)
    assert f"{number}: wire-drop active, 0 hits; direction=both probability=0.01" in listed
    assert f"{other}: rx-late waiting, 0 hits" in listed
    run("fault", "end", number, "--control", control)
    assert "wire-drop" not in run("fault", "list", "--control", control)
    assert "no fault" in run("fault", "end", number, "--control", control, status=1)


def test_wrong_requests_say_what_is_right(control: str, tmp_path: Path) -> None:
    said = run("fault", "add", "wire-drip", "--control", control, status=1)
    assert "no fault 'wire-drip', but wire-drop" in said
    assert "no parameter 'p'" in run("fault", "add", "wire-drop", "p=1", "--control", control, status=1)
    assert "PARAMETER=VALUE" in run("fault", "add", "wire-drop", "often", "--control", control, status=2)
    file = tmp_path / "wrong.toml"
    file.write_text("[[fault]]\nname = 'wire-drip'\n")
    assert "fault 1: there is no fault" in run("fault", "play", str(file), "--control", control, status=1)
    said = run("serve", "--socket", str(tmp_path / "nic.sock"), "--faults", str(file), status=1)
    assert "wrong.toml: fault 1" in said
    with Control(control) as asked, pytest.raises(ControlError, match="parameters is an object"):
        asked.request("fault", fault="wire-drop", parameters=[])


def test_the_list() -> None:
    listed = run("faults")
    assert [name for name in KINDS if name not in listed] == []
    said = " ".join(run("faults", "admin-status").split())
    assert KINDS["admin-status"].effect in said
    assert "RESOURCE_EXHAUSTED" in said and "EXTENDED_COMMAND" in said and "of each occasion (0 to 1)" in said


def test_the_scenario_of_the_page_plays(control: str, tmp_path: Path) -> None:
    file = tmp_path / "scenario.toml"
    file.write_text(SCENARIO)
    run("fault", "play", str(file), "--control", control)
    listed = run("fault", "list", "--control", control)
    assert [
        name for name in (fault.name for _, fault in Scenario.parse(SCENARIO, KINDS).faults) if name not in listed
    ] == []


def test_the_commands_of_the_page_work(control: str) -> None:
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        run(*shlex.split(command.replace("/tmp/nic.ctl", control)))
    assert run("fault", "list", "--control", control) == ""


WEATHER = (Path(__file__).parents[2] / "docs" / "weather.md").read_text()


def test_weather_is_listed_and_written_down(tmp_path: Path) -> None:
    listed = run("weather")
    assert [name for name, kind in KINDS.items() if kind.source and name not in listed] == []
    assert "wire-drop" not in listed
    written = run("weather", "7:0.3:tx-miss,rx-scatter")
    assert [fault.name for _, fault in Scenario.parse(written, KINDS).faults] == ["tx-miss", "rx-scatter"]
    assert "is no behaviour of weather" in run("weather", "7:0.3:tx-mist", status=2)
    assert "it is SEED" in run("serve", "--socket", str(tmp_path / "nic.sock"), "--weather", "rain", status=2)


def test_a_server_has_weather() -> None:
    with NicServer(["--mac", NIC_MAC, "--weather", "7:0.3:tx-miss"]) as server:
        listed = run("fault", "list", "--control", str(server.control))
        assert listed.startswith("1: tx-miss active, 0 hits") and len(listed.split(": tx-miss")) == 2
        assert "tx-miss" in run("show", "--control", str(server.control)).split("faults and weather")[1]


def test_the_weather_of_the_page(control: str, tmp_path: Path) -> None:
    """Its scenario plays, and its commands work."""
    [scenario] = re.findall(r"^```toml\n(.*?)^```", WEATHER, re.MULTILINE | re.DOTALL)
    file = tmp_path / "scenario.toml"
    file.write_text(scenario)
    run("fault", "play", str(file), "--control", control)
    assert "tx-miss active" in run("fault", "list", "--control", control)
    for command in re.findall(r"^ +nicmodel ((?:weather|faults|fault add) ?.*?)(?: +#.*)?$", WEATHER, re.MULTILINE):
        run(*shlex.split(command.replace("/tmp/nic.ctl", control)))


def test_the_table_is_the_registry() -> None:
    """Each fault has its row, with the words of its definition."""
    rows = re.findall(r"^\| `(.*?)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert [row[0] for row in rows] == list(KINDS)
    for name, where, summary, effect in rows:
        kind = KINDS[name]
        assert (where, summary, effect) == (kind.where, kind.summary(), kind.effect)
