"""What `show`, `top` and the other tables print fits the terminal, whatever its size."""

from __future__ import annotations

import copy
import io
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from nicmodel.cli.ledger import view as ledger_view
from nicmodel.cli.show import print_state
from nicmodel.cli.tables import pairs, rows, wrapped
from nicmodel.cli.top import view
from nicmodel.client.ledger import Entry, Place, entries, since
from nicmodel.client.report import ledger_table, plain_console
from nicmodel.gvnic.testing.flows import TCPv4, TCPv6
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.state import Drop
from nicmodel.observe.detail import detail
from nicmodel.observe.snapshot import snapshot

WIDTHS = (60, 80, 100, 200)
QUEUES = 20


@pytest.fixture
def busy(make_lab: Callable[..., Loopback]) -> Loopback:
    """A NIC with many queues and rules that say much."""
    lab = make_lab(queues=40, default_queues=QUEUES)
    lab.driver.probe()
    lab.driver.open(ring_entries=64, header_split=True)
    addresses = {"src": "2001:db8:aaaa:bbbb:cccc:dddd:eeee:1", "dst": "2001:db8:aaaa:bbbb:cccc:dddd:eeee:2"}
    lab.driver.add_flow_rule(TCPv4(dst_port=5201), queue=3)
    lab.driver.add_flow_rule(TCPv6(**addresses, src_port=40000, dst_port=5201), queue=4)  # type: ignore[arg-type]
    return lab


def console_of(width: int) -> tuple[Console, io.StringIO]:
    console, out = plain_console(), io.StringIO()
    console.file, console.width = out, width
    return console, out


def fits(text: str, width: int) -> bool:
    """Whether no line is too long, and nothing was cut to make it so."""
    return "…" not in text and max(map(cell_len, text.split("\n"))) <= width


def stats(lab: Loopback, nics: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two answers of ``stat``, between which every queue moved much, the last one of each way the most."""
    one = snapshot(lab.nic)
    drops = {reason.name.lower(): 1_234_567 for reason in Drop if reason > Drop.HELD}
    kinds = {"ram": 10**12, "accelerator-memory-0": 10**12}
    before = [{**copy.deepcopy(one), "name": f"nic{number}"} for number in range(nics)]
    after = copy.deepcopy(before)
    for nic in after:
        nic["drops"] = nic["device_drops"] = drops
        nic["dma"] = dict.fromkeys(("payload", "header", "descriptor", "completion", "transmit"), kinds)
        nic["interrupts"] = [count + 999_400 for count in nic["interrupts"]]
        for way, counter in (("rx", "frames"), ("tx", "packets")):
            for queue in nic[f"{way}_queues"]:
                queue |= {counter: 10**9 + queue["queue"], "bytes": 10**12, "drops": drops}
                queue |= {"buffer_entries": 4096} if way == "rx" else {"entries": 4096}
    return before, after


@pytest.mark.parametrize("width", WIDTHS)
def test_show(busy: Loopback, width: int) -> None:
    """Verify: no line is too long, and each queue, option and rule, and all of what is long, is there."""
    found = detail(busy.nic)
    console, out = console_of(width)
    print_state(console, found)
    text = out.getvalue()
    assert fits(text, width)
    for name in (*found["queues"], *found["options"]):
        assert re.search(rf"^{name} ", text, re.MULTILINE), name
    for rule in found["rules"]:
        assert re.search(rf"^ *{rule['location']} .*{rule['flow_type']}", text, re.MULTILINE)
    squeezed = re.sub(r"\s", "", text)
    assert found["rss"]["key"] in squeezed and found["driver"]["capabilities"] in squeezed
    addresses = {queue["completion_ring"] for queue in found["queues"].values()}
    assert all(f"{address:#x}" in text for address in addresses)
    entry = r"(?: +\d+)"
    table = re.findall(rf"^ +\d+:({entry}+)$", text, re.MULTILINE)
    assert [int(queue) for row in table for queue in row.split()] == found["rss"]["table"]


def test_show_of_a_nic_without_a_driver(lab: Loopback) -> None:
    console, out = console_of(60)
    print_state(console, detail(lab.nic))
    assert fits(out.getvalue(), 60)
    for title in ("driver", "receive queues", "transmit queues"):
        assert f"\n{title}: none\n" in out.getvalue()


def test_interrupts_that_are_alike_are_one_row(busy: Loopback) -> None:
    console, out = console_of(100)
    found = detail(busy.nic)
    for number, block in enumerate(found["blocks"]):
        block |= {"enabled": 40 <= number < 60, "pending": number == 7, "interval_ns": 0, "fires": 0}
    print_state(console, found)
    table = out.getvalue().split("\ninterrupts\n")[1].split("\n\n")[0]
    assert re.findall(r"^([\d-]+) ", table, re.MULTILINE)[-5:] == ["0-6", "7", "8-39", "40-59", "60-79"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("nics", [1, 3])
def test_top(busy: Loopback, width: int, nics: int) -> None:
    """Verify: without a height all queues of all NICs are there, and no line is too long."""
    console, out = console_of(width)
    console.print(view(console, *stats(busy, nics), seconds=1.0))
    text = out.getvalue()
    assert fits(text, width)
    assert text.count("\nrx") == text.count("\ntx") == nics * QUEUES
    assert text.count("no_buffers") >= nics


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("height", [1, 10, 24, 50, 500])
@pytest.mark.parametrize("nics", [1, 2, 8])
def test_top_fits_the_screen(busy: Loopback, width: int, height: int, nics: int) -> None:
    """Verify: it is no higher than the screen (but for one queue of one NIC), tells what is left out, and leaves out
    the least busy.
    """
    console, out = console_of(width)
    before, after = stats(busy, nics)
    console.print(view(console, before, after, 1.0, height=height))
    text = out.getvalue()
    assert fits(text, width)
    shown = re.findall(r"^nic\d ", text, re.MULTILINE)
    queues = re.findall(r"^[rt]x(\d+) ", text, re.MULTILINE)
    assert text.count("\n") <= height or (len(shown), len(queues)) == (1, 1)
    hidden = [int(count) for count in re.findall(r"^and (\d+) more queues", text, re.MULTILINE)]
    assert len(queues) + sum(hidden) == len(shown) * 2 * QUEUES
    left_out = re.findall(r"^and (\d+) more NICs", text, re.MULTILINE)
    assert len(shown) + sum(map(int, left_out)) == nics
    if 1 <= len(queues) <= len(shown):
        assert set(queues) == {str(QUEUES - 1)}
    if height == 500 and nics == 1:
        assert not hidden and not left_out


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seconds", [0, 1])
def test_ledger(busy: Loopback, width: int, seconds: int) -> None:
    before, after = stats(busy, 1)
    for queue in after[0]["rx_queues"]:
        kinds = {"ram": 1023 << 30, "accelerator": 1000 << 20}
        queue["dma"] = dict.fromkeys(("payload", "header", "completion"), kinds)
    book = [*entries(after[0]), Entry("tx0", "read", "transmit", "hbm", Place.PEER, "switch", 1)]
    console, out = console_of(width)
    moved = since(entries(before[0]), entries(after[0]))
    console.print(ledger_table(book, moved=moved if seconds else (), seconds=seconds, width=width))
    assert fits(out.getvalue(), width)
    assert "rx39" in out.getvalue() and "1023.0" in out.getvalue() and "switch" in out.getvalue()


@pytest.mark.parametrize("height", [None, 1, 24])
def test_top_of_nics_without_a_driver(lab: Loopback, height: int | None) -> None:
    console, out = console_of(60)
    console.print(view(console, [snapshot(lab.nic)], [snapshot(lab.nic)], 1.0, height=height))
    console.height = height or 24
    console.print(ledger_view(console, {"nic0": []}, {"nic0": []}, 1.0))
    assert fits(out.getvalue(), 60) and "\ndevice " in out.getvalue() and "DMA: none" in out.getvalue()


@pytest.mark.parametrize("height", [12, 24, 50])
@pytest.mark.parametrize("nics", [1, 2])
def test_ledger_fits_the_screen(busy: Loopback, height: int, nics: int) -> None:
    """Verify: it is no higher than the screen, tells what is left out, and keeps the sums and the busiest queue."""
    before, after = stats(busy, nics)
    for nic in after:
        for queue in nic["rx_queues"]:
            queue["dma"] = {"payload": {"ram": 1000 + queue["queue"]}, "completion": {"ram": 16}}
    was, now = ({nic["name"]: entries(nic) for nic in answer} for answer in (before, after))
    console, out = console_of(60)
    console.height = height
    console.print(ledger_view(console, was, now, 1.0))
    text = out.getvalue()
    assert fits(text, 60)
    assert text.count("\n") <= height or (nics, height) == (2, 12)
    assert len(re.findall(r"^rx39 ", text, re.MULTILINE)) == nics
    assert text.count("\nall ") >= nics
    left_out = re.findall(r"(\d+) of (\d+) queues left out", text)
    shown = set(re.findall(r"^([rt]x\d+|device) ", text, re.MULTILINE))
    for hidden, count in left_out:
        assert int(count) == len({entry.queue for entry in now["nic0"]}) and len(shown) == int(count) - int(hidden)
    assert len(left_out) == (0 if (nics, height) == (1, 50) else nics)


@pytest.mark.parametrize("width", [20, 40, 60])
def test_rows_and_pairs(width: int) -> None:
    """Verify: columns that do not fit come below, each with the first one; nothing of a long text is lost."""
    long = "0123456789" * 9
    records = [{"name": f"x{number}", **{f"c{column}": number * column for column in range(30)}, "text": long}
               for number in range(3)]  # fmt: skip
    console, out = console_of(width)
    rows(console, records)
    assert fits(out.getvalue(), width)
    assert out.getvalue().count("x2 ") > 1 and all(f"c{column}" in out.getvalue() for column in range(30))
    assert long * 3 in re.sub(r"[^\d]", "", out.getvalue().split("text")[1].replace("x0", "").replace("x1", "")
                              .replace("x2", ""))  # fmt: skip
    console, out = console_of(width)
    pairs(console, {"a": 1, "b": True, "c": long, "d": "", "reserved0": 5})
    assert fits(out.getvalue(), width) and "reserved" not in out.getvalue()
    assert long in re.sub(r"\s", "", out.getvalue())


def test_what_is_the_same_is_told_once() -> None:
    console, out = console_of(80)
    rows(console, [{"queue": f"rx{number}", "vector": number, "entries": 64} for number in range(2)], once=True)
    assert out.getvalue().count("64") == 1 and "the same for all: entries 64" in out.getvalue()


@pytest.mark.parametrize("width", [30, 60])
def test_lines_for_a_terminal_are_wrapped_at_words(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Verify: every word is whole, continued lines are indented, and for other programs a line stays a line."""
    text = (
        "RX-BUF-003 error: nic0 rx3: a buffer is posted twice\n  rule    A buffer is posted once.\n\n  x "
        + "word " * 40
    )
    assert wrapped(text) == text
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", str(width))
    told = wrapped(text)
    assert fits(told, width) and told.split() == text.split() and "\n\n" in told
    assert all(line.startswith("      ") for line in told.partition("  x ")[2].splitlines()[1:])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True
