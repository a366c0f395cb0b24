"""What is printed of text that comes from outside."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys

import click
import pytest
from rich.console import Console

from nicmodel.cli.log import BURST, SECONDS, LogHandler
from nicmodel.cli.options import interval_option
from nicmodel.client.ledger import Entry, Place
from nicmodel.client.report import ledger_table, named, plain_console
from nicmodel.client.text import escaped, fields, lines, printable
from nicmodel.observe.findings import as_text

#: An operator's terminal would change its title, clear the screen, take something for its clipboard, go back a line.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b]52;c;cHduZWQ=\x07\r\n\x9b31m\u202e\udce4\x00[/bold][red]:smile:"


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_printable() -> None:
    assert printable("ram, Grüße, ✓, 中文") == "ram, Grüße, ✓, 中文"
    assert printable("a\x1b[2Jb\r\n\t\x9b\x7f\u202e\udce4") == r"a\x1b[2Jb\r\n\t\x9b\x7f\u202e\udce4"
    assert printable(HOSTILE).isprintable()
    printable(HOSTILE).encode()


def test_everything_that_is_shown_is_printable() -> None:
    data = {HOSTILE: [HOSTILE, {"x": (HOSTILE, 1, None, True)}]}
    assert json.dumps(escaped(data), ensure_ascii=False).isprintable()
    event = {"time": 0, "nic": HOSTILE, "kind": "client", "what": "attach", "client": HOSTILE, "fields": data}
    assert [line for line in lines(event, 0) if not line.isprintable()] == []
    assert fields({"name": HOSTILE, "list": [HOSTILE], "record": {"a": HOSTILE}}).isprintable()
    assert named({HOSTILE: 1}).isprintable()
    finding = {
        "rule": "X", "severity": "error", "nic": HOSTILE, "queue": HOSTILE, "count": 1, "what": HOSTILE, "says": "",
        "source": "", "evidence": {HOSTILE: HOSTILE, "record": {"a": HOSTILE}}, "recent": [HOSTILE],
    }  # fmt: skip
    assert is_harmless(as_text(finding)) and as_text(finding).count("\n") == 5


@pytest.mark.parametrize("width", [1, 2, 5, 20, 200])
def test_what_looks_like_markup_is_text(width: int) -> None:
    out = io.StringIO()
    console = plain_console()
    console.file, console.width = out, width
    console.print(ledger_table([Entry("rx0", "write", "payload", HOSTILE, Place.DEVICE, "unknown", 7)], title="[/x]"))
    assert is_harmless(out.getvalue())
    if width == 200:
        assert "[/bold][red]:smile:" in out.getvalue() and "[/x]" in out.getvalue()
    assert isinstance(console, Console)


@pytest.fixture
def log() -> tuple[logging.Logger, io.StringIO, list[float]]:
    out, now = io.StringIO(), [0.0]
    handler = LogHandler(out, lambda: now[0])
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger, out, now


def test_a_message_is_one_printable_line(log: tuple[logging.Logger, io.StringIO, list[float]]) -> None:
    logger, out, _ = log
    logger.warning("driver %s", HOSTILE)
    logger.info(HOSTILE)
    assert out.getvalue().count("\n") == 2 and is_harmless(out.getvalue())
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("failed")
    assert "Traceback" in out.getvalue() and is_harmless(out.getvalue())


def test_a_flood_of_warnings_is_counted(log: tuple[logging.Logger, io.StringIO, list[float]]) -> None:
    logger, out, _ = log
    for number in range(1000):
        logger.warning("opcode %d", number)
        logger.info("asked for")
    logger.warning("something else")
    said = out.getvalue().splitlines()
    assert [line for line in said if line != "asked for"] == [f"opcode {n}" for n in range(BURST)] + ["something else"]
    assert said.count("asked for") == 1000
    logger.handlers[0].close()
    assert out.getvalue().splitlines()[len(said) :] == [f"{1000 - BURST} more like this: opcode 999"]


def test_what_was_left_out_is_told_with_the_next(log: tuple[logging.Logger, io.StringIO, list[float]]) -> None:
    logger, out, now = log
    for number in range(BURST + 5):
        if number == BURST + 4:
            now[0] += SECONDS
        logger.warning("opcode %d", number)
    assert out.getvalue().splitlines()[BURST:] == [f"4 more like this: opcode {BURST + 3}", f"opcode {BURST + 4}"]


@pytest.mark.parametrize("interval", ["nan", "inf", "-inf", "0", "-1", "1e300", "x", ""])
def test_no_number_of_seconds(interval: str) -> None:
    command = click.Command("top", params=[], callback=lambda interval: None)
    interval_option(command)
    with pytest.raises(click.BadParameter):
        command.main(["--interval", interval], standalone_mode=False)


def nicmodel(shell: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """What a shell makes of a command line that begins with ``nicmodel``."""
    command = shell.replace("nicmodel", f"{sys.executable} -m nicmodel.cli")
    env = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, timeout=120, env=env)


@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ("nicmodel rules | { exec 0<&-; sleep 1; }", 1, b""),
        ("nicmodel rules >/dev/full", 1, b"nicmodel: No space left on device"),
        ("nicmodel rules >&-", 0, b""),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii nicmodel faults wire-drop", 0, b""),
        ("COLUMNS=1 nicmodel rules", 0, b""),
        ("COLUMNS=3 nicmodel faults", 0, b""),
        ("nicmodel fault play /dev/null --control /nonexistent/x", 1, b"nicmodel: no server answers"),
        ("nicmodel stat --control ''", 1, b"nicmodel: no server answers"),
        ("nicmodel stat --control /" + "x" * 200, 1, b"nicmodel: no server answers"),
        ("nicmodel show --control $'/tmp/\\x1b[2J\\xff'", 1, b"nicmodel: no server answers at /tmp/\\x1b[2J\\udcff"),
    ],
)
def test_ends_of_a_command(shell: str, status: int, said: bytes) -> None:
    done = nicmodel(shell)
    assert done.returncode == status, done
    assert said in done.stderr and b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    assert (done.stderr == b"") == (said == b"")
