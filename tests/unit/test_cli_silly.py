"""Whatever a person types: a sentence that says what is wrong, and never a traceback."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from click.testing import CliRunner, Result

import nicmodel.cli.conform
import nicmodel.cli.demo
import nicmodel.cli.experiment.everything
import nicmodel.cli.experiment.nvme
import nicmodel.cli.experiment.questions
import nicmodel.cli.experiment.series
import nicmodel.cli.kernel
import nicmodel.cli.selftests
import nicmodel.vm.cli
import nicmodel.vm.guest
from nicmodel.cli.main import cli
from nicmodel.cli.serve import serve
from nicmodel.client.control import ControlError
from nicmodel.gvnic.profile import named_profile
from nicmodel.vm.errors import VmError
from nicmodel.wire.spec import KINDS, open_wire
from nicmodel.wire.wire import WireError

_SILLY = (
    *("", " ", "0", "-1", "-99999999999999999999", "1", "2", "63", "99999999999", "99999999999999999999999999"),
    *("1e9", "nan", "inf", "0x10", "٣", "x", "é", "\udcff", "\x1b[31m", "x" * 5000, "/", "..", "/nonexistent/x"),
    *("=", "=1", "x=", "x=1", ":", "x:1", "localhost:99999999", f"{'x' * 300}:80", "[::1]:x", ",", "%s", "{}"),
)

#: What a command is given besides, so that it would end in any case, without having done anything.
_ENDING = {"serve": ["--socket", "/nonexistent/nic.sock", "--wire", "tap:fd=x"]}
_CONTROL = ["--control", "/nonexistent/control"]


def stop(*arguments: Any, **keywords: Any) -> NoReturn:
    raise VmError("nothing is started here")


@pytest.fixture(autouse=True)
def nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Some values are names of files that a command may write.
    monkeypatch.chdir(tmp_path)
    look_up = socket.getaddrinfo
    # No name server is asked.
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, **more: look_up(host, port, flags=socket.AI_NUMERICHOST, **more)
    )
    for module, name in (
        (nicmodel.vm.guest, "build_image"), (nicmodel.vm.cli, "build_image"), (nicmodel.vm.cli, "Guest"),
        (nicmodel.vm.cli, "unpacked_qemu"), (nicmodel.cli.demo, "find_qemu"),
        (nicmodel.cli.experiment.series, "set_up"), (nicmodel.cli.experiment.questions, "run_placement"),
        (nicmodel.cli.experiment.questions, "run_owners"), (nicmodel.cli.experiment.questions, "run_exit"),
        (nicmodel.cli.experiment.nvme, "set_up"), (nicmodel.cli.selftests, "Bench"),
        (nicmodel.cli.conform, "DriverBench"), (nicmodel.cli.kernel, "build_kernel"),
        # And no process by what is not listed here.
        (subprocess, "Popen"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, stop)


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield (*names, name), command


def cases() -> Iterator[Any]:
    """Each option that takes a value, of each command; and what the command is called with besides."""
    for names, command in commands(cli):
        options = [one for one in command.params if isinstance(one, click.Option) and not one.is_flag and not one.count]
        besides = list(_ENDING.get(names[0], []))
        if any(one.name == "path" for one in options):
            besides += _CONTROL
        besides += ["x"] * sum(one.required for one in command.params if isinstance(one, click.Argument))
        for one in options:
            yield pytest.param([*names], one.opts[0], besides, id=" ".join([*names, one.opts[0]]))


def invoke(words: list[str]) -> Result:
    result = CliRunner().invoke(cli, words, standalone_mode=False)
    expected = (click.ClickException, click.exceptions.Exit, SystemExit, ControlError, VmError, WireError, OSError)
    if result.exception is not None and not isinstance(result.exception, expected):
        raise AssertionError(words) from result.exception
    return result


@pytest.mark.parametrize(("names", "option", "besides"), list(cases()))
def test_silly_values(names: list[str], option: str, besides: list[str]) -> None:
    for value in _SILLY:
        invoke([*names, *besides, f"{option}={value}"])


@pytest.mark.parametrize("kind", [*KINDS, "nonesuch"])
@pytest.mark.parametrize(
    "form", [":{}", ":fd={}", ":listen={}", ":local={},remote={}", ":/nonexistent,loop={}", ":/nonexistent,pace={}"]
)
def test_silly_wires(kind: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wire is opened or refused by a sentence. No interface is made, and none of this host's is listened to."""

    def refuse(*arguments: Any) -> NoReturn:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo")])
    for text in dict.fromkeys([kind, f"{kind}:", *(kind + form.replace("{}", value) for value in _SILLY)]):
        try:
            wire = open_wire(text)
        except WireError as error:
            assert str(error)
        else:
            wire.stop()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--queues 4 --default-queues 5", "5 queues in use of 4"),
        ("--default-queues 9", "9 queues in use of 8"),
        ("--default-queues 0", "between 1 and"),
        ("--default-queues -3", "between 1 and"),
        ("--queues 0", "between 1 and 63"),
        ("--queues 64", "between 1 and 63"),
        ("--mtu 67", "between 68 and 9216"),
        ("--deferred-usecs 5", "--deferred-usecs wants --deferred-placement"),
        ("--deferred-queue 8192", "8192 bytes on the NIC for a queue, 0 for all"),
        ("--owner-lookahead 5", "--owner-lookahead wants --owners"),
        ("--no-coalesce --coalesce-flows 5", "--coalesce-flows wants --coalesce"),
        ("--busy-poll 99999999999", "not in the range"),
        ("--coalesce-usecs 99999999999", "at most"),
        ("--deferred-placement 1M", "not a valid integer"),
        ("--report /nonexistent/report.json", "no folder /nonexistent"),
        ("--wire link", "a link joins two NICs"),
        ("--wire none --wire none", "2 wires for 1 NICs"),
        ("--mac 01:00:00:00:00:01", "multicast address"),
        ("--profile defualt", "did you mean 'default'?"),
    ],
)
def test_what_serve_refuses(words: str, complaint: str) -> None:
    result = CliRunner().invoke(serve, ["--socket", "/nonexistent/nic.sock", *words.split()])
    assert result.exit_code == 2 and complaint in " ".join(result.output.split()), result.output


def test_fewer_queues_than_a_profile_uses() -> None:
    """Only what was said has to agree: the profile's own number gives way."""
    assert named_profile("gce", queues=2).queues == 2


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["serv"], "serve"),
        (["serve", "--socket", "x", "--wire", "lnk"], "link"),
        (["serve", "--socket", "x", "--wire", "swich:uplink=none"], "switch"),
        (["serve", "--socket", "x", "--wire", "packet:loo"], "lo"),
        (["serve", "--socket", "x", "--wire", "tpa:tap0"], "tap"),
        (["serve", "--socket", "x", "--profile", "gc"], "gce"),
        (["vm", "--kernel", "trixi"], "trixie"),
        (["vm", "--layout", "swich"], "switch"),
        (["config", "libvrit"], "libvirt"),
        (["config", "q35", "--set", "VCPU=1"], "VCPUS"),
        (["rules", "RX-BFU-003"], "RX-BUF-003"),
        (["faults", "wire-dorp"], "wire-drop"),
        (["selftests", "ntupel"], "ntuple"),
    ],
)
def test_a_mistyped_name_gets_the_nearest(words: list[str], meant: str) -> None:
    if words[-1].startswith("packet:") and os.geteuid():
        pytest.skip("a packet socket takes root")
    result = invoke(words)
    assert f"{meant}'?" in str(getattr(result.exception, "message", result.exception))
