"""Reasons for lines that were not reached, held against what has run of a small module, echo_module/echo.c."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nicmodel.cli.main import cli
from nicmodel.vm.coverage.data import Coverage
from nicmodel.vm.coverage.module import Module
from nicmodel.vm.coverage.reasons import Reasons
from nicmodel.vm.errors import VmError

ECHO = Path(__file__).with_name("echo_module") / "echo.ko"
#: echo(1, 0), which calls sum(0, 0), as tests/unit/test_vm_coverage.py has it; and its call of complain().
CALL, COMPLAINS = ((64, 28), (92, 5), (160, 13), (0, 8), (8, 18), (26, 7), (33, 7)), (201, 12)

HEAD = """
module = "echo"
release = "7.3"
least = 95

[kinds.memory]
device = false
why = "There is no memory left."

[kinds.untried]
device = true
why = "Nobody has tried."

[kinds.luck]
device = true
chance = true
why = "Some runs do."
"""
#: Each line that such a call does not reach, of which the last one is that of a device.
ALL = """
[[unreached]]
function = "sum"
kind = "memory"
code = '''
		result += outside(number);
>	return result;
'''

[[unreached]]
function = "echo"
kind = "memory"
code = '''
	if (what > 2)
>		complain(much);
	if (what == 1)
...
>	if (what == 2)
>		return twice(much) + sum(much, 2 * much);
>	return -1;
'''

[[unreached]]
function = ["never", "cleanup_module"]
kind = "memory"
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def check(folder: Path, reasons: str, *more: tuple[int, int], source: str = "") -> Result:
    """Hold reasons against that call, and more blocks."""
    coverage = Coverage()
    coverage.module("echo", Module.read(ECHO).build_id, "7.3.4").add("call", dict.fromkeys((*CALL, *more), 1))
    coverage.save(folder / "cov")
    (folder / "reasons.toml").write_text(reasons)
    sources = folder / "source"
    sources.mkdir()
    (sources / "echo.c").write_text(source or (ECHO.parent / "echo.c").read_text())
    words = ["coverage", "check", str(folder / "reasons.toml"), str(folder / "cov"), "--module", str(ECHO)]
    return CliRunner().invoke(cli, [*words, "--source", str(sources)], env={"COLUMNS": "200"})


def test_each_line_has_a_reason(tmp_path: Path) -> None:
    run = check(tmp_path, HEAD + ALL)
    assert run.exit_code == 0, run.output
    assert "11/21" in run.stdout and "11/11" in run.stdout and "100.0 %" in run.stdout


def test_a_line_without_a_reason(tmp_path: Path) -> None:
    run = check(tmp_path, HEAD + ALL.replace(">\t\tcomplain", "\t\tcomplain"))
    assert run.exit_code == 1
    assert "no reason: echo.c:24: complain(much);" in run.stdout
    assert run.stdout.count("no reason") == 1


def test_a_line_that_was_reached_and_has_a_reason(tmp_path: Path) -> None:
    run = check(tmp_path, HEAD + ALL, COMPLAINS)
    assert run.exit_code == 1
    assert "wrong: echo.c:24 was reached, and has a reason not to be (memory): complain(much);" in run.stdout


def test_a_line_that_some_runs_reach(tmp_path: Path) -> None:
    reasons = HEAD.replace("95", "50") + ALL.replace('"memory"', '"luck"')
    assert check(tmp_path, reasons, COMPLAINS).exit_code == 0


def test_too_few_of_those_that_a_device_can_cause(tmp_path: Path) -> None:
    """*Verify*: a reason that blames nobody but the tests does not make the share larger."""
    run = check(tmp_path, HEAD + ALL.replace('"memory"', '"untried"', 1))
    assert run.exit_code == 1
    assert "11/12" in run.stdout
    assert "too few: 91.7 % of the lines that a device can cause, not 95 %" in run.stdout


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return -1;", "return -2;", "'if (what == 2)' is not in echo"),
        ("return result;", "return result + 1;", "'return result;' is not in sum"),
        ("int echo(", "int repeat(", "there is no function echo any more"),
    ],
)
def test_a_source_that_is_another_now(tmp_path: Path, old: str, new: str, said: str) -> None:
    run = check(tmp_path, HEAD + ALL, source=(ECHO.parent / "echo.c").read_text().replace(old, new))
    assert run.exit_code == 1
    assert f"wrong: {said}" in run.stdout


def test_an_excerpt_that_is_there_twice(tmp_path: Path) -> None:
    source = (ECHO.parent / "echo.c").read_text().replace("\tcount++;", "\tif (what > 2)\n\t\tcomplain(much);")
    run = check(tmp_path, HEAD + ALL.replace("\tif (what == 1)\n", ""), source=source)
    assert "wrong: 'complain(much);' is at several places of echo" in run.stdout


def test_another_kernel(tmp_path: Path) -> None:
    """Of 7.3.4 it is not said what is not reached in 7.30, or 7.2."""
    for number, release in enumerate(("7.2", "7.30", "7.3.40")):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = check(folder, HEAD.replace('"7.3"', f'"{release}"') + ALL)
        assert f"nothing has run of echo of Linux {release}" in str(run.exception)


def test_two_reasons_for_a_line(tmp_path: Path) -> None:
    run = check(tmp_path, HEAD + ALL + '\n[[unreached]]\nfunction = "never"\nkind = "untried"\n')
    assert run.exit_code == 1
    assert "echo.c:33 has two reasons, memory and untried" in run.stdout


def test_what_is_marked_has_no_code(tmp_path: Path) -> None:
    head = "__attribute__((noinline)) static int sum(int first, int last)"
    comment = f"\n[[unreached]]\nfunction = 'sum'\nkind = 'memory'\ncode = '''\n> {head}\n'''\n"
    run = check(tmp_path, HEAD + ALL + comment)
    assert run.exit_code == 1
    assert f"sum: no code was made of what is marked in '{head}'" in run.stdout


def test_as_json(tmp_path: Path) -> None:
    check(tmp_path, HEAD + ALL)
    words = [str(tmp_path / "reasons.toml"), str(tmp_path / "cov"), "--module", str(ECHO), "--source", str(ECHO.parent)]
    run = CliRunner().invoke(cli, ["coverage", "check", *words, "--json"])
    said = json.loads(run.stdout)
    assert said["passed"] is True and said["lines"] == {"ran": 11, "total": 11}
    assert said["kinds"] == {"memory": 10, "untried": 0, "luck": 0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "module = 1\nleast = 1\nkinds = {}",
        'module = "echo"\nrelease = "7.3"\nleast = 101\nkinds = {}',
        HEAD + '[[unreached]]\nfunction = "sum"\nkind = "none"',
        HEAD + '[[unreached]]\nfunction = "sum"\nkind = "memory"\nwhy = "x"',
        HEAD + '[[unreached]]\nfunction = ["sum", "echo"]\nkind = "memory"\ncode = "x"',
        HEAD.replace("false", '"no"'),
    ],
)
def test_a_file_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "reasons.toml").write_text(text)
    with pytest.raises(VmError, match="is no file of reasons"):
        Reasons.load(tmp_path / "reasons.toml")


def test_the_reasons_for_gve_can_be_read() -> None:
    """*Verify*: each kind is used, and what a device cannot cause is never a matter of chance."""
    reasons = Reasons.load(Path(__file__).parents[1] / "guest" / "gve-lines.toml")
    assert reasons.is_about("gve", "7.3.4+deb13-cloud-amd64") and reasons.least == 95
    assert {excerpt.kind.name for excerpt in reasons.excerpts} == set(reasons.kinds)
    assert not any(kind.chance for kind in reasons.kinds.values() if not kind.device)
