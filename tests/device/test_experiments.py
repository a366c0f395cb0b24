"""The reviewers' questions, in short: each experiment holds, sees what it says it sees, and fails where it has to."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from nicmodel.cli.experiment import questions
from nicmodel.cli.experiment import show as shown
from nicmodel.cli.experiment.everything import SHORT
from nicmodel.cli.experiment.page import write_page
from nicmodel.cli.main import cli
from nicmodel.client import results
from nicmodel.client.results import Claim, Column, Table
from nicmodel.gvnic.experiments import owners, placement, process_exit
from nicmodel.gvnic.experiments.labels import Labelled, different, owner_of, whose
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.vm.errors import VmError
from nicmodel.vm.kills import Kill, add_kills

PLACEMENT, OWNERS, EXIT, _ = SHORT


class Watched(Loopback):
    """A NIC whose driver has to keep the contract to its end, but for some rules."""

    but: frozenset[str] = frozenset()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, check=True)

    def close(self) -> None:
        found = self.findings
        super().close()
        assert {finding.rule.name for finding in found} <= self.but, "\n".join(map(str, found))


class WatchedExit(Watched):
    """One of the ways out is to reset the device with all its queues, which is what that rule is about."""

    but = frozenset({"REG-010"})


@pytest.fixture(scope="module", autouse=True)
def _watch() -> Iterator[None]:
    """All that the experiments here do is right by the contract of the options that they use."""
    with pytest.MonkeyPatch.context() as patch:
        for module, nic in ((placement, Watched), (owners, Watched), (process_exit, WatchedExit)):
            patch.setattr(module, "Loopback", nic)
        yield


@pytest.fixture(scope="module")
def placed() -> list[dict[str, Any]]:
    return [placement.measure(PLACEMENT, case) for case in placement.cases(PLACEMENT)]


@pytest.fixture(scope="module")
def owned() -> list[dict[str, Any]]:
    return [owners.measure(OWNERS, case) for case in owners.cases(OWNERS)]


@pytest.fixture(scope="module")
def left() -> list[dict[str, Any]]:
    return [process_exit.measure(EXIT, way) for way in process_exit.WAYS]


def failed(result: results.Result) -> list[str]:
    return [f"{claim.claim} ({claim.evidence})" for claim in result.claims if not claim.holds]


# What was measured


def test_placement(placed: list[dict[str, Any]]) -> None:
    """Placed by queue most payload is in the wrong memory; by header none; with little memory some is the host's."""
    result = placement.conclude(PLACEMENT, placed)
    assert failed(result) == [] and len(result.claims) == 8
    for row in placed:
        assert row["own"] + row["host_instead"] + row["anothers"] + row["lost"] == row["bytes"] > 0
    today, soon, later, little, dropping, slow = placed
    assert today["anothers_percent"] == pytest.approx(100 * 2 / 3, abs=10)
    assert soon["latency_us"] == 20 and later["latency_us"] == 100 and soon["peak"] < later["peak"]
    assert little["peak"] <= little["budget"] and dropping["peak"] <= dropping["budget"]
    assert little["own"] + little["host_instead"] == little["bytes"] and dropping["lost"] > 0
    assert slow["requests"] == {"NOT_FOUND": slow["frames"]}


def test_owners(owned: list[dict[str, Any]]) -> None:
    """A plain ring leaks, one in order blocks and lets wait, one that sorts does neither."""
    assert failed(owners.conclude(OWNERS, owned)) == []
    found = {(row["kind"], row["others"]): row for row in owned}
    assert all((row["wrong_memory"] > 0) == (row["ring"] == owners.PLAIN) for row in owned)
    assert found["tagged, 1 ahead", owners.SILENT]["share"] < 5
    assert found["tagged, 1 ahead", owners.STEADY]["wait_us_max"] > 0
    assert all(found[f"tagged, {owners.RING} ahead", others]["share"] == 100 for others in owners.OTHERS)


def test_exit(left: list[dict[str, Any]]) -> None:
    """A flush loses nothing, a restarted queue its own frames, a reset all; silence lets the NIC write on."""
    assert failed(process_exit.conclude(EXIT, left, {})) == []
    frames = EXIT.frames * EXIT.rounds
    assert [(row["way"], row["commands"], row["lost"], row["lost_others"]) for row in left] == [
        ("nothing", 0, 0, 0), ("flush", 1, 0, 0), ("restart", 2, frames, 0), ("reset", 15, frames, 3 * frames),
    ]  # fmt: skip
    assert left[0]["late"] == 2 * frames * 1000 and not any(row["late"] for row in left[1:])
    for row in left:
        assert row["stopped_us"][0] <= row["stopped_us"][1] <= row["stopped_us"][2]


def test_labelled_payload_tells_whose_it_is() -> None:
    traffic = Labelled(3, 100)
    frame = traffic.frame(2, 5)
    header, payload = frame[:42], frame[42:]
    assert owner_of(header) == 2 and traffic.payload(header) == payload != traffic.payload(traffic.frame(2, 6)[:42])
    memory = bytearray(1000)
    memory[10:110] = payload
    memory[200:300] = traffic.frame(0, 1)[42:]
    assert whose(np.frombuffer(memory, np.uint8)) == {2: 100, 0: 100}
    assert different(payload, payload) == 0 and different(payload, payload[:-1] + b"\0") == 1
    assert different(payload, payload[:90]) == 10
    for owners_, size in ((0, 100), (16, 100), (2, 0), (2, 5000)):
        with pytest.raises(ValueError, match=r"told apart|fit a frame"):
            Labelled(owners_, size)


# What fails


@pytest.mark.parametrize(
    ("number", "change", "claim"),
    [
        (1, {"wrong_bytes": 1}, 0), (1, {"faults": ["hbm0 has had more"]}, 0), (0, {"anothers": 0}, 1),
        (2, {"anothers": 7}, 2), (1, {"own": 1}, 3), (2, {"peak": 1 << 30}, 4), (3, {"lost": 1}, 5),
        (4, {"host_instead": 1}, 6), (5, {"requests": {"PLACED": 1, "NOT_FOUND": 300}}, 7),
    ],
)  # fmt: skip
def test_placement_that_does_not_hold(
    placed: list[dict[str, Any]], number: int, change: dict[str, Any], claim: int
) -> None:
    rows = [row | change if at == number else row for at, row in enumerate(placed)]
    claims = placement.conclude(PLACEMENT, rows).claims
    assert [at for at, one in enumerate(claims) if not one.holds] == [claim]


@pytest.mark.parametrize(
    ("number", "change", "claim"),
    [(0, {"wrong_bytes": 1}, 0), (0, {"wrong_memory": 0}, 1), (8, {"wrong_memory": 1}, 2), (4, {"share": 50.0}, 3),
     (3, {"wait_us_max": 0.0}, 4), (7, {"received": 3}, 5), (6, {"descriptor_bytes": 99.0}, 6)],
)  # fmt: skip
def test_owners_that_do_not_hold(
    owned: list[dict[str, Any]], number: int, change: dict[str, Any], claim: int
) -> None:  # fmt: skip
    rows = [row | change if at == number else row for at, row in enumerate(owned)]
    claims = owners.conclude(OWNERS, rows).claims
    assert [at for at, one in enumerate(claims) if not one.holds] == [claim]


@pytest.mark.parametrize(
    ("number", "change", "claim"),
    [(1, {"wrong_bytes": 1}, 0), (0, {"late": 0}, 1), (2, {"late": 1}, 2), (1, {"lost": 1}, 3),
     (2, {"lost_others": 1}, 4), (3, {"lost_others": 0}, 5)],
)  # fmt: skip
def test_exit_that_does_not_hold(left: list[dict[str, Any]], number: int, change: dict[str, Any], claim: int) -> None:
    rows = [row | change if at == number else row for at, row in enumerate(left)]
    claims = process_exit.conclude(EXIT, rows, {}).claims
    assert [at for at, one in enumerate(claims) if not one.holds] == [claim]


@pytest.mark.parametrize(
    ("change", "verdicts"),
    [
        ({}, [True, True, True]),
        ({"commands": ("DECONFIGURE_DEVICE_RESOURCES PASSED",)}, [False, True, True]),
        ({"late": 1}, [True, False, True]),
        ({"poisoned": 0}, [True, False, True]),
        ({"others_lost": 1}, [True, True, False]),
        ({"afterwards": 0}, [True, True, False]),
    ],
)
def test_verdicts_on_the_stock_driver(
    left: list[dict[str, Any]], change: dict[str, Any], verdicts: list[bool]
) -> None:  # fmt: skip
    result = process_exit.conclude(EXIT, left, {})
    kill = Kill(24.0, 28.0, 46.0, poisoned=300, late=0, afterwards=90, others=400, others_lost=0, commands=())
    add_kills(result, [kill, dataclasses.replace(kill, **change)], {"guest kernel": "7.3"})
    assert [claim.holds for claim in result.claims[-3:]] == verdicts and result.about["guest kernel"] == "7.3"
    assert len(result.tables[1].rows) == 2


# The commands


@pytest.fixture
def measured(
    monkeypatch: pytest.MonkeyPatch, placed: list[dict[str, Any]], owned: list[dict[str, Any]],
    left: list[dict[str, Any]],
) -> None:  # fmt: skip
    """The commands have what was measured above; measuring is not what is asked here."""
    for module, parameters, rows in ((placement, PLACEMENT, placed), (owners, OWNERS, owned)):
        by_case = dict(zip(module.cases(parameters), rows, strict=True))
        monkeypatch.setattr(module, "measure", lambda parameters, case, by_case=by_case: by_case[case])
    by_way = {row["way"]: row for row in left}
    monkeypatch.setattr(process_exit, "measure", lambda parameters, way: by_way[way])


def call(*words: str) -> Result:
    return CliRunner().invoke(cli, ["experiment", *words], env={"COLUMNS": "100"}, standalone_mode=False)


_WORDS: dict[str, list[str]] = {
    "placement": ["--accelerators=2", "--answer=20", "--answer=100", "--share=0.5", "--timeout=100",
                  "--milliseconds=0.5"],
    "owners": ["--owners=2", "--lookahead=1", f"--lookahead={owners.RING}", "--milliseconds=60"],
    "exit": ["--rounds=2", "--no-guest"],
}  # fmt: skip


@pytest.mark.parametrize("name", _WORDS)
@pytest.mark.usefixtures("measured")
def test_command(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Question, tables that fit 100 columns, verdicts, and the same as JSON and Markdown; exit status 0."""
    as_json, markdown = tmp_path / "result.json", tmp_path / "result.md"
    ran = call(name, *_WORDS[name], "--json", str(as_json), "--markdown", str(markdown))
    assert ran.exception is None, ran.output
    found = json.loads(as_json.read_text())
    assert found["experiment"] == name and found["holds"] and found["tables"][0]["rows"]
    text = " ".join((ran.output + capsys.readouterr().out).split())
    assert found["question"] in text and found["asked"] in text
    assert text.count("✓") >= len(found["claims"]) and "✗" not in text
    lines = markdown.read_text().splitlines()
    assert sum(line.startswith("- ✓") for line in lines) == len(found["claims"])
    assert sum(line.startswith("| ") for line in lines) == 1 + len(found["tables"][0]["rows"])


def test_exit_status(monkeypatch: pytest.MonkeyPatch, left: list[dict[str, Any]]) -> None:
    """What did not hold is said, and is an error."""
    by_way = {row["way"]: row | {"late": 5} for row in left}
    monkeypatch.setattr(process_exit, "measure", lambda parameters, way: by_way[way])
    ran = call("exit", "--no-guest")
    assert isinstance(ran.exception, VmError)
    assert "After each of the three ways nothing is written" in str(ran.exception)


def test_tables_fit(
    placed: list[dict[str, Any]],
    owned: list[dict[str, Any]],
    left: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every column is there, and no line is longer than 100 characters; on a narrow terminal none is lost either."""
    for result in (
        placement.conclude(PLACEMENT, placed), owners.conclude(OWNERS, owned), process_exit.conclude(EXIT, left, {}),
    ):  # fmt: skip
        for width in (100, 60):
            console = Console(width=width)
            monkeypatch.setattr(shown, "console", console)
            with console.capture() as captured:
                shown.show(result)
            text = captured.get()
            assert width < 100 or max(map(len, text.splitlines())) <= 100
            for column in result.tables[0].columns:
                assert all(word in text for word in column.heading.split()), (column, text)
            assert "…" not in text


# The page

HOSTILE = "<script>document.title='x'</script>&\"'"


def hostile() -> results.Result:
    """A result all of whose strings would do something in a page that does not escape them."""
    return results.Result(
        name="hostile", title=HOSTILE, question=HOSTILE, asked=HOSTILE, about={HOSTILE: HOSTILE},
        tables=[Table(HOSTILE, [Column("a", HOSTILE)], [{"a": HOSTILE}], HOSTILE)],
        claims=[Claim(HOSTILE, False, HOSTILE)], driver=HOSTILE, page="x.md",
    )  # fmt: skip


def test_page_escapes(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    write_page(file, [(hostile(), b"<svg xmlns='http://www.w3.org/2000/svg'/>")], HOSTILE)
    text = file.read_text()
    assert "<script" not in text and html.escape("<script>") in text
    assert "data:image/svg+xml;base64," in text


def test_page_of_what_was_not_judged(tmp_path: Path) -> None:
    """It is neither among what held nor among what did not, which marks the experiment whatever else there is."""
    file, unjudged, failed = tmp_path / "page.html", Claim("It rises.", None, "busy"), Claim("It is.", False, "no")
    for claims, mark in (([unjudged], "unjudged"), ([unjudged, failed], "fails")):
        result = results.Result("a", "A", "?", "nobody", {}, claims=claims)
        write_page(file, [(result, None)], "here")
        text = file.read_text()
        assert f'<td class="number {mark}">0 of {len(claims)}</td>' in text
        assert '<li class="unjudged">not judged: It rises. ' in text and not result.holds


@pytest.fixture
def page(tmp_path: Path, measured: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page of all experiments, without a guest, as the command writes it."""
    pytest.importorskip("matplotlib")
    file = tmp_path / "all.html"
    ran = call("all", "--short", "--no-guest", "--html", str(file), "--json", str(tmp_path / "all.json"))
    assert ran.exception is None, ran.output
    return file


def test_page(page: Path) -> None:
    """One file: nothing is fetched, plots are inside, each experiment has its part, and every claim is there."""
    text = page.read_text()
    found = json.loads((page.parent / "all.json").read_text())
    assert [one["experiment"] for one in found] == ["placement", "owners", "exit"]
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", text)
    assert links and all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in links)
    assert "@import" not in text and "url(" not in text
    assert text.count("<img ") == text.count("data:image/svg+xml;base64,") == 3
    for one in found:
        assert f'id="{one["experiment"]}"' in text
        for claim in one["claims"]:
            assert html.escape(claim["claim"], quote=False).replace("'", "&#39;") in text


def browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture
def dump(tmp_path: Path) -> Callable[[Path], str]:
    """What a browser makes of a page: its document, after scripts have run."""
    program = browser()
    if program is None:
        pytest.skip("no browser here (chromium, google-chrome)")

    def run(file: Path) -> str:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
                   file.as_uri()]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def test_page_in_a_browser(page: Path, dump: Callable[[Path], str]) -> None:
    """*Steps*: have a browser load the page, with a script of the test's that writes down what it sees.

    *Verify*: each picture has been decoded and has a size; every experiment and table is on it, and nothing is wider
    than the window but what scrolls.
    """
    probe = """<script>onload = () => { document.title = JSON.stringify({
        pictures: [...document.images].map(one => one.complete && one.naturalWidth > 100 && one.width > 100),
        sections: [...document.querySelectorAll("section")].map(one => one.id),
        rows: document.querySelectorAll("section tbody tr").length,
        claims: document.querySelectorAll("li.holds").length,
        fits: document.documentElement.scrollWidth <= document.documentElement.clientWidth,
    }) }</script>"""
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", f"{probe}</body>"))
    title = re.search(r"<title>(.*?)</title>", dump(probed), re.DOTALL)
    assert title
    seen = json.loads(html.unescape(title[1]))
    found = json.loads((page.parent / "all.json").read_text())
    assert seen == {
        "pictures": [True] * 3, "sections": ["placement", "owners", "exit"],
        "rows": sum(len(table["rows"]) for one in found for table in one["tables"]),
        "claims": sum(len(one["claims"]) for one in found), "fits": True,
    }  # fmt: skip


def test_nothing_on_the_page_runs(tmp_path: Path, dump: Callable[[Path], str]) -> None:
    file = tmp_path / "page.html"
    write_page(file, [(hostile(), None)], HOSTILE)
    assert "<title>Experiments of nicmodel</title>" in dump(file)


def test_a_page_wants_matplotlib_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(questions, "run_placement", lambda parameters: pytest.fail("something is measured"))
    ran = call("all", "--no-guest", "--html", str(tmp_path / "x.html"))
    assert "matplotlib" in str(ran.exception)
