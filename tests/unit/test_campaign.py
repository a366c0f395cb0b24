"""A campaign's file and its cells, what is kept of them, and what a person is shown."""

from __future__ import annotations

import sqlite3
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from nicmodel.cli import campaign as command
from nicmodel.cli.main import cli
from nicmodel.vm.campaign import workers
from nicmodel.vm.campaign.cell import MAX_OUTPUT, Outcome, run
from nicmodel.vm.campaign.plan import Cell, Plan, PlanError
from nicmodel.vm.campaign.store import Store
from nicmodel.vm.errors import VmError


def plan(folder: Path, text: str) -> Plan:
    file = folder / "campaign.toml"
    file.write_text(text)
    return Plan.read(file)


def words(found: Plan) -> list[str]:
    return [" ".join(cell.words) for cell in found.cells()]


def test_a_cell_for_each_combination(tmp_path: Path) -> None:
    found = plan(tmp_path, 'command = "rules {what}-{n} {form}"\n[axes]\nwhat = ["RX", "TX"]\nn = {first=1, last=2}\n'
                 'form = ["", "--json --device idpf"]\n[[leave-out]]\nwhat = "TX"\nn = ["1"]\n')  # fmt: skip
    assert words(found) == [
        "rules RX-1", "rules RX-1 --json --device idpf", "rules RX-2", "rules RX-2 --json --device idpf",
        "rules TX-2", "rules TX-2 --json --device idpf",
    ]  # fmt: skip
    assert len({cell.key for cell in found.cells()}) == 6


def test_a_value_with_a_quotation_is_one_word(tmp_path: Path) -> None:
    [cell] = plan(tmp_path, """command = "conform {more}"\n[axes]\nmore = ["--serve '--queues 2'"]\n""").cells()
    assert cell.words == ("conform", "--serve", "--queues 2")


def test_without_axes_there_is_one_cell(tmp_path: Path) -> None:
    [cell] = plan(tmp_path, 'command = "rules"\n').cells()
    assert (cell.words, cell.name, cell.timeout) == (("rules",), "rules", 900)


def test_a_cell_is_known_by_what_it_is_given(tmp_path: Path) -> None:
    text = 'command = "conform {gve}"\n[files]\ngve = "gve"\n'
    (tmp_path / "gve").mkdir()
    (tmp_path / "gve" / "main.c").write_text("int x;")
    [first] = plan(tmp_path, text).cells()
    [same] = plan(tmp_path, "timeout = 5\n" + text).cells()
    (tmp_path / "gve" / "main.c").write_text("int y;")
    [changed] = plan(tmp_path, text).cells()
    assert first.key == same.key != changed.key


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = ", "Invalid value"),
        ("a = " + "[" * 5000, "nested"),
        ("", 'command = "..." is missing'),
        ("command = 5", "is missing"),
        ('command = "rules \'"', "command: No closing quotation"),
        ('comand = "rules"', "there is no 'comand' in a campaign; did you mean 'command'?"),
        ('command = "rules"\ntimeout = 0', "timeout is a number of seconds"),
        ('command = "rules"\ntimeout = true', "timeout is a number of seconds"),
        ('command = "rules"\ntimeout = nan', "timeout is a number of seconds"),
        ('command = "rules"\naxes = 3', "[axes] is a table"),
        ('command = "rules {a}"\n[axes]\na = []', "axes.a: values are a list, and not an empty one"),
        ('command = "rules {a}"\n[axes]\na = [1.5]', "1.5 is neither a string nor a whole number"),
        ('command = "rules {a}"\n[axes]\na = [true]', "True is neither"),
        ('command = "rules {a}"\n[axes]\na = ["x", "x"]', "a value is there twice"),
        ('command = "rules {a}"\n[axes]\na = ["\'"]', "No closing quotation"),
        ('command = "rules {a}"\n[axes]\na = {first=1}', "a range is { first = 1, last = 20 }"),
        ('command = "rules {a}"\n[axes]\na = {first=2, last=1}', "a range is"),
        ('command = "rules {a}"\n[axes]\na = {first=1, last=1000000000000}', "100,000 numbers at most"),
        ('command = "rules {a} {b}"\n[axes]\na = {first=1, last=1000}\nb = {first=1, last=1000}', "1,000,000 comb"),
        ('command = "rules {kernl}"\n[axes]\nkernel = ["x"]', "{kernl} is not the name of an axis or of a file; did"),
        ('command = "rules"\n[axes]\nkernel = ["x"]', "kernel is not in the command"),
        ('command = "rules {a}"\n[axes]\na = ["{b}"]', "{b} is not the name of a file"),
        ('command = "rules {result}"\n[axes]\nresult = ["x"]', "'result' cannot be the name"),
        ('command = "rules {a b}"\n[axes]\n"a b" = ["x"]', "'a b' cannot be the name"),
        ('command = "rules {a}"\n[axes]\na = ["x"]\n[[leave-out]]\nb = "x"', "leave-out: there is no axis 'b'"),
        ('command = "rules {a}"\n[axes]\na = ["xyz"]\n[[leave-out]]\na = "xy"', "axis a has no 'xy'; did you mean"),
        ('command = "rules {a}"\n[axes]\na = ["x"]\n[leave-out]\na = "x"', "[[leave-out]] has values by axis"),
        ('command = "rules {a}"\n[files]\na = "nosuch.ko"', "nosuch.ko: No such file"),
        ('command = "rules {a}"\n[files]\na = "/dev/zero"', "files are more than 64 MiB"),
        ('command = "rules {a}"\n[files]\na = 3', "files.a is the path of a file or of a folder"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_told(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(PlanError) as told:
        plan(tmp_path, text)
    assert says in str(told.value) and "campaign.toml" in str(told.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "nosuch.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(PlanError, match=says):
            Plan.read(path)


def cell(found: Plan) -> Cell:
    return next(iter(found.cells()))


def test_what_a_cell_writes_and_prints_is_kept(tmp_path: Path) -> None:
    """*Steps*: a campaign, all of whose cells have a verdict, is the cell of another: it writes a page."""
    inner = plan(tmp_path, 'command = "rules {which}"\n[axes]\nwhich = ["RX", "TX"]\n')
    with Store(tmp_path / "inner.sqlite") as store:
        for one in inner.cells():
            store.add(one, Outcome("good"))
    (tmp_path / "campaign.toml").rename(tmp_path / "inner.toml")
    found = plan(tmp_path, 'command = "campaign {inner} --results {known} --html {result}"\n[files]\n'
                 'inner = "inner.toml"\nknown = "inner.sqlite"\n')  # fmt: skip
    outcome = run(cell(found), found.files)
    assert (outcome.status, outcome.code) == ("good", 0)
    assert outcome.output.startswith("2 of 2 cells have a verdict") and "2 of 2 are good" in outcome.result
    assert outcome.seconds > 0 and outcome.cpu > 0


def test_of_what_a_cell_prints_the_last_is_kept(tmp_path: Path) -> None:
    values = ", ".join(f'"{number}-{"x" * 100}"' for number in range(1000))
    (tmp_path / "inner.toml").write_text(f'command = "rules {{which}}"\n[axes]\nwhich = [{values}]\n')
    found = plan(tmp_path, 'command = "campaign {inner} --list"\n[files]\ninner = "inner.toml"\n')
    outcome = run(cell(found), found.files)
    assert outcome.status == "good" and len(outcome.output) == MAX_OUTPUT
    assert outcome.output.endswith(f"999-{'x' * 100}\n")


def test_a_folder_has_its_name_at_the_worker(tmp_path: Path) -> None:
    (tmp_path / "gve").mkdir()
    (tmp_path / "gve" / "empty.c").touch()
    found = plan(tmp_path, 'command = "campaign {mine} --list"\n[files]\nmine = "gve"\n')
    outcome = run(cell(found), found.files)
    assert (outcome.status, outcome.code) == ("failed", 2) and "mine/gve' is a directory" in outcome.output


def test_a_cell_that_does_not_end_is_ended(tmp_path: Path) -> None:
    found = plan(tmp_path, 'command = "serve --socket nic.sock"\ntimeout = 2\n')
    outcome = run(cell(found), found.files)
    assert (outcome.status, outcome.code) == ("hung", None) and outcome.seconds >= 2


def test_what_became_of_cells_is_kept(tmp_path: Path) -> None:
    found = plan(tmp_path, 'command = "rules {which}"\n[axes]\nwhich = ["RX", "TX"]\n')
    first, second = found.cells()
    database = tmp_path / "campaign.sqlite"
    with Store(database) as store:
        store.add(first, Outcome("lost"))
        store.add(first, Outcome("good", 0, 2.5, 1.5, "here:1", "done", "{}"))
        store.add(second, Outcome("hung", None, 3.0))
        with pytest.raises(VmError, match="another campaign uses it"):
            Store(database)
    with Store(database) as store:
        assert store.outcomes({first.key}) == {first.key: Outcome("good", 0, 2.5, 1.5, "here:1", "done")}
    with sqlite3.connect(database) as plainly:
        rows = plainly.execute("SELECT json_extract(axes, '$.which'), status, result FROM cells ORDER BY 1").fetchall()
    assert rows == [("RX", "good", "{}"), ("TX", "hung", "")]


def test_what_is_no_database_of_a_campaign_is_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text("not a database\n" * 100)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE cells (x)")
    before = other.read_bytes()
    for path, says in ((text, "no database of a campaign"), (other, "of this version"), (tmp_path, "cannot be used")):
        with pytest.raises(VmError, match=says):
            Store(path)
    assert other.read_bytes() == before


def test_a_campaign_lists_its_commands(tmp_path: Path) -> None:
    file = tmp_path / "campaign.toml"
    file.write_text('command = "conform --weather {seed}"\n[axes]\nseed = {first=3, last=4}\n')
    said = CliRunner().invoke(cli, ["campaign", str(file), "--list"])
    assert said.output.splitlines() == ["nicmodel conform --weather 3", "nicmodel conform --weather 4"]


def test_the_page_shows_what_is_not_good(tmp_path: Path) -> None:
    """And markup from outside, in a value or in what a command prints, is text."""
    found = plan(tmp_path, 'command = "rules {which}"\n[axes]\nwhich = ["RX", "<b>"]\n')
    good, bad = cells = list(found.cells())
    outcomes = {good.key: Outcome("good", 0, 1.0), bad.key: Outcome("broken", 3, 2.0, output="<script>\x1b[31m")}
    page = command.page("<c>.toml", found, cells, outcomes)
    assert "1 of 2 are good" in page and "<c>" not in page and "<b>" not in page and "<script>" not in page
    assert page.count('<td class="good">✓</td>') == page.count('<td class="bad">✗</td>') == 1
    assert "&lt;script&gt;\\x1b[31m" in page


def test_an_outcome_that_dies_with_its_worker_is_lost() -> None:
    """The scheduler has told that the cell is finished, and gives it up while its outcome is fetched."""

    class Finished:
        status = "finished"

        def result(self, timeout: float) -> Outcome:
            raise CancelledError

    assert workers._outcome(cast("Any", Finished())).status == "lost"
