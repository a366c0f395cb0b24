"""Coverage, from what QEMU's plugin leaves in the shared file to tables: of a small module, coverage/echo.ko."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from nicmodel.cli.main import cli
from nicmodel.vm.coverage import build, files
from nicmodel.vm.coverage.build import plugin_word
from nicmodel.vm.coverage.data import Coverage, merge
from nicmodel.vm.coverage.html import write_pages
from nicmodel.vm.coverage.lines import Lines, _home, read_lines
from nicmodel.vm.coverage.live import BLOCK, CODE, LiveFile
from nicmodel.vm.coverage.module import Module
from nicmodel.vm.coverage.recorder import Recorder, load
from nicmodel.vm.coverage.report import Report, Share, lcov, ranges
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest
from nicmodel.vm.qemu import Qemu

ECHO = Path(__file__).with_name("echo_module") / "echo.ko"
SOURCE = "drivers/echo/echo.c"
HERE, THERE = 0xFFFF_FFFF_C020_0000, 0xFFFF_FFFF_C0A4_5000

#: Places in echo.ko, as objdump shows them: what the emulator makes of echo(1, 0). That jumps to sum(0, 0), which calls
#: outside().
ECHO_ENTERED, WHAT_1, SUM = (64, 28), (92, 5), (0, 8)
LOOP, AFTER_CALL, END = (8, 18), (26, 7), (33, 7)
CALL_1 = (ECHO_ENTERED, WHAT_1, (160, 13), SUM, LOOP, AFTER_CALL, END)
COLD = (201, 12)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def echo() -> Module:
    return Module.read(ECHO)


@pytest.fixture
def lines(echo: Module) -> Lines:
    return read_lines(echo)


def loaded(module: Module, base: int) -> bytes:
    """The code as the kernel would leave it at an address: relocated, and the first instruction of `echo` another."""
    code = np.where(module.fixed, module.text, 0xA0 + (base >> 12) % 16).astype(np.uint8)
    code[64:68] = list(bytes.fromhex("0f1f40d6"))
    return code.tobytes()


def blocks(code: bytes, base: int, places: Sequence[tuple[int, int]]) -> NDArray[Any]:
    """What the plugin would note of blocks of this code."""
    found = np.zeros(len(places), BLOCK)
    for number, (place, size) in enumerate(places):
        head = code[place : place + min(size, CODE)]
        found[number] = (base + place, size, list(head.ljust(CODE, b"\0")))
    return found


def recorded(contexts: dict[str, Sequence[tuple[int, int]]]) -> Coverage:
    """Coverage of echo.ko: each block was entered once, or as often as it is named."""
    coverage = Coverage()
    record = coverage.module("echo", Module.read(ECHO).build_id, "7.3.4")
    for name, entered in contexts.items():
        record.add(name, {block: list(entered).count(block) for block in entered})
    return coverage


def report(lines: Lines | None, contexts: dict[str, Sequence[tuple[int, int]]]) -> Report:
    module = Module.read(ECHO)
    return Report(recorded(contexts).modules[module.build_id], module, lines)


def test_functions_have_their_cold_parts_and_code_that_is_freed_is_none(echo: Module) -> None:
    assert {function.name: function.parts for function in echo.functions} == {
        "sum": ((0, 57),),
        "echo": ((64, 173), (201, 213)),
        "never": ((176, 201),),
        "cleanup_module": ((224, 238),),
    }


def test_basic_blocks_are_those_of_the_disassembly(echo: Module) -> None:
    """*Verify*: they are where objdump has jumps and their targets, also in the cold part; padding is in none."""
    assert echo.code.blocks.tolist() == [
        [0, 8], [8, 16], [16, 33], [33, 40], [48, 57],  # sum
        [64, 92], [92, 97], [97, 102], [102, 140], [144, 156], [160, 173],  # echo
        [176, 201], [201, 213], [224, 238],
    ]  # fmt: skip


def test_a_module_is_found_wherever_it_was_loaded(echo: Module) -> None:
    """*Steps*: at two addresses, with other relocations each, other modules' code around. *Verify*: both are found."""
    here, there = loaded(echo, HERE), loaded(echo, THERE)
    assert here != there
    noise = np.random.default_rng(1).integers(0, 256, 4096).astype(np.uint8).tobytes()
    seen = np.concatenate(
        [
            blocks(here, HERE, CALL_1),
            blocks(noise, HERE + 0x10000, [(place, 20) for place in range(0, 4000, 40)]),
            blocks(there, THERE, CALL_1),
        ]
    )
    places, bases = echo.locate(seen)
    assert sorted(bases) == [HERE, THERE]
    own = [place for place, _ in CALL_1]
    assert places.tolist() == [*own, *[-1] * 100, *own]


def test_code_that_came_to_the_place_of_the_module_is_not_taken_for_it(echo: Module) -> None:
    noise = np.random.default_rng(2).integers(0, 256, 4096).astype(np.uint8).tobytes()
    others = [(8, 18), (64, 28), (160, 13)]
    seen = np.concatenate([blocks(loaded(echo, HERE), HERE, CALL_1), blocks(noise, HERE, others)])
    places, bases = echo.locate(seen)
    assert bases == [HERE]
    assert places.tolist() == [*(place for place, _ in CALL_1), -1, -1, -1]


def test_a_module_that_has_not_run_is_nowhere(echo: Module) -> None:
    noise = np.random.default_rng(3).integers(0, 256, 4096).astype(np.uint8).tobytes()
    places, bases = echo.locate(blocks(noise, HERE, [(place, 20) for place in range(0, 4000, 40)]))
    assert bases == [] and set(places.tolist()) == {-1}
    assert echo.locate(np.zeros(0, BLOCK))[1] == []


def test_lines_are_the_modules_own(lines: Lines) -> None:
    assert lines.files == (SOURCE, "include/twice.h")
    assert lines.own == (True, False)
    assert sorted(lines.line[lines.place == 201].tolist()) == [24]  # the call of complain()


def test_what_was_compiled_is_where_its_file_is() -> None:
    """A module outside of the kernel's tree is compiled in its own folder, by a name without one."""
    assert _home("mine.c", ["/build/mine.c", "/usr/src/linux/include/linux/pci.h"]) == "/build"
    assert _home("drivers/net/gve/gve_main.c", ["drivers/net/gve/gve_main.c"]) == "drivers/net/gve"


def test_figures_of_one_call(lines: Lines) -> None:
    """echo(1, 0): it and sum ran, never() and the cold part did not."""
    found = report(lines, {"": CALL_1})
    functions = {function.function.name: function for function in found.functions}
    assert {name: (one.calls, str(one.blocks)) for name, one in functions.items()} == {
        "sum": (1, "4/5"),
        "echo": (1, "3/7"),
        "never": (0, "0/1"),
        "cleanup_module": (0, "0/1"),
    }
    assert found.total.functions == Share(2, 4)
    assert found.total.blocks == Share(7, 14)
    # Line 17, "return result", is code only where the loop does not run at all.
    missing = [number for number, count in found.source[SOURCE].items() if not count]
    assert missing == [17, 24, 27, 28, 29, 33, 34, 35, 43, 44]
    assert functions["echo"].line == 21
    assert functions["echo"].missing == ((24, 24), (27, 29))
    assert not functions["never"].reached
    assert found.missing_blocks(functions["echo"].function) == [97, 102, 144, 201]


def test_a_function_of_which_only_the_cold_part_ran_has_run() -> None:
    """A driver that is in it when a test begins."""
    found = report(None, {"": [COLD]})
    [echo] = [function for function in found.functions if function.reached]
    assert (echo.function.name, echo.calls, str(echo.blocks), echo.lines) == ("echo", 0, "1/7", Share(0, 0))


def test_tests_are_told_apart(lines: Lines) -> None:
    found = report(lines, {"one": CALL_1, "other": [*CALL_1, COLD, (176, 13), (189, 12)]})
    assert [(test.name, test.functions, test.blocks, test.only_here) for test in found.by_test] == [
        ("one", 2, 7, ()),
        ("other", 3, 9, ("never",)),
    ]
    [never] = [function for function in found.module.functions if function.name == "never"]
    assert found.tests_of(never) == {"other": 1}
    assert found.contexts_of_lines[SOURCE][24] == ["other"]
    assert found.contexts_of_lines[SOURCE][21] == ["one", "other"]


def test_lcov_has_functions_and_lines(lines: Lines) -> None:
    text = lcov([report(lines, {"": [*CALL_1, *CALL_1]})])
    assert text.startswith(
        f"TN:\nSF:{SOURCE}\nFN:12,sum\nFN:21,echo\nFN:33,never\nFN:43,cleanup_module\n"
        "FNDA:2,sum\nFNDA:2,echo\nFNDA:0,never\nFNDA:0,cleanup_module\nFNF:4\nFNH:2\nDA:12,2\n"
    )
    assert "\nDA:24,0\n" in text
    assert text.endswith("\nLF:21\nLH:11\nend_of_record\n")


def test_without_lines_there_are_functions_and_blocks_and_it_is_said(tmp_path: Path) -> None:
    """*Steps*: a module without debug information. *Verify*: figures without lines, no tracefile, and what to do."""
    content = ECHO.read_bytes().replace(b".debug_line\0", b".nebug_line\0")
    (tmp_path / "echo.ko").write_bytes(content)
    recorded({"": CALL_1}).save(tmp_path / "cov")
    words = ["coverage", "report", str(tmp_path / "cov"), "--module", str(tmp_path / "echo.ko")]
    run = CliRunner().invoke(cli, words)
    assert run.exit_code == 0
    assert "2/4" in run.stdout and "7/14" in run.stdout
    assert "Lines are not known" in run.stdout and "--fetch" in run.stdout
    run = CliRunner().invoke(cli, [*words, "--missing"])
    assert "+0x21" in run.stdout or "+0x26" in run.stdout
    run = CliRunner().invoke(cli, [*words, "--lcov", str(tmp_path / "x.info")])
    assert "a tracefile is about lines" in str(run.exception)
    assert not (tmp_path / "x.info").exists()


def test_parts_are_added_up_and_builds_stay_apart() -> None:
    one, other = recorded({"a": CALL_1, "b": [SUM]}), recorded({"a": [SUM, SUM]})
    other.module("echo", "another", "7.3.5").add("a", {(0, 4): 1})
    whole = merge([one, other])
    [echo, another] = whole.modules.values()
    assert echo.contexts["a"][SUM] == 3 and echo.contexts["a"][LOOP] == 1 and echo.contexts["b"] == {SUM: 1}
    assert another.contexts == {"a": {(0, 4): 1}}
    assert one.modules[echo.build_id].contexts["a"][SUM] == 1  # what was added up is as it was


def test_a_file_says_what_was_saved(tmp_path: Path) -> None:
    whole = recorded({"tests/a.py::test[x]": CALL_1, "": [SUM]})
    whole.lost = 3
    whole.save(tmp_path / "cov")
    assert Coverage.load(tmp_path / "cov") == whole


GOOD = json.loads(recorded({"a": [SUM]}).as_json())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no coverage file"),
        ("\x7fELF", "is no coverage file"),
        ("[" * 100_000, "is no coverage file"),
        ("[1]", "is no coverage file"),
        (json.dumps({**GOOD, "nicmodel coverage": 2}), "of another version of nicmodel"),
        (json.dumps({**GOOD, "lost": -1}), "damaged"),
        (json.dumps({**GOOD, "modules": [{}]}), "damaged"),
        (json.dumps({**GOOD, "modules": [{**GOOD["modules"][0], "blocks": [[0]]}]}), "damaged"),
        (json.dumps({**GOOD, "modules": [{**GOOD["modules"][0], "contexts": {"a": [[7, 1]]}}]}), "damaged"),
        (json.dumps({**GOOD, "modules": [{**GOOD["modules"][0], "contexts": {"a": [[0, 1e9]]}}]}), "damaged"),
    ],
)
def test_a_broken_file_is_refused_in_a_sentence(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "cov").write_text(text)
    with pytest.raises(VmError, match=words):
        load(tmp_path / "cov")


@pytest.mark.parametrize("place", [(1 << 40, 8), (230, 1 << 40), (0, 0)])
def test_blocks_that_the_module_has_not_are_harmless(place: tuple[int, int]) -> None:
    assert report(None, {"": [place]}).total.blocks.ran <= 1


@pytest.mark.parametrize("cut", [0, 60, 4000, 8000])
def test_what_is_no_module_is_refused_in_a_sentence(cut: int, tmp_path: Path) -> None:
    (tmp_path / "bad.ko").write_bytes(ECHO.read_bytes()[:cut])
    with pytest.raises(VmError, match="is no kernel module for x86-64"):
        Module.read(tmp_path / "bad.ko")
    with pytest.raises(VmError, match="No such file"):
        Module.read(tmp_path / "none.ko")


def test_damaged_modules_are_refused_in_a_sentence() -> None:
    """*Steps*: overwrite some bytes, often of the headers. *Verify*: each is read or refused."""
    content, chance = ECHO.read_bytes(), random.Random(7)
    headers = [*range(64), *range(len(content) - 64 * 22, len(content))]
    refused = 0
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 4, 30))):
            place = chance.choice(headers) if chance.random() < 0.5 else chance.randrange(len(content))
            damaged[place] ^= chance.randrange(256)
        try:
            module = Module(bytes(damaged), "damaged.ko")
            assert len(module.code.blocks) <= len(module.text)
            read_lines(module)
        except VmError:
            refused += 1
    assert 10 < refused < 90


def test_kvm_and_coverage_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a guest finds out before anything is started."""
    guest = Guest(recorder=Recorder())
    monkeypatch.setenv("NICMODEL_ACCEL", "kvm")
    with pytest.raises(VmError, match="NICMODEL_ACCEL=kvm must be unset"):
        guest._choose_acceleration()
    guest._qemu = Qemu(("qemu",), "QEMU 11")
    monkeypatch.setenv("NICMODEL_ACCEL", "tcg,thread=single")
    assert guest._choose_acceleration() == "tcg,thread=single"
    monkeypatch.delenv("NICMODEL_ACCEL")
    assert guest._choose_acceleration() == "tcg"


def test_a_qemu_without_plugins_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """*Steps*: programs that answer as QEMUs do. *Verify*: the version of the interface, or what to do."""
    monkeypatch.setattr(build, "_compiled", lambda api: tmp_path / f"{api}.so")
    said = "Could not load plugin: plugin requires API version 1000000, but this QEMU supports only up to version 7"
    assert build._interface(("sh", "-c", f"echo '{said}' >&2; exit 1"), (), "QEMU 11") == 7
    with pytest.raises(VmError, match=r"QEMU 9 takes no TCG plugins.*\(qemu: -plugin: invalid option\)"):
        build._interface(("sh", "-c", "echo 'qemu: -plugin: invalid option' >&2"), (), "QEMU 9")
    with pytest.raises(VmError, match="cannot be asked"):
        build._interface((str(tmp_path / "none"),), (), "none")


def test_a_module_that_was_built_anew_is_not_taken_for_the_one_that_ran(tmp_path: Path) -> None:
    record = next(iter(recorded({"": [SUM]}).modules.values()))
    assert files.find(record, [ECHO]).build_id == record.build_id
    content = ECHO.read_bytes()
    (tmp_path / "echo.ko").write_bytes(content.replace(bytes.fromhex(record.build_id), bytes(20)))
    with pytest.raises(VmError, match=f"name it, --module FILE. Its build id is {record.build_id}"):
        files.find(record, [tmp_path / "echo.ko"])
    files.keep(Module.read(ECHO))
    assert files.find(record).build_id == record.build_id


# The shared file.


def plugin_writes(path: Path, seen: NDArray[Any], counts: Sequence[Sequence[int]]) -> None:
    """Do what plugin.c does: blocks, and for each vCPU how often they were entered."""
    with LiveFile(path) as live:
        live._blocks[: len(seen)] = seen
        for vcpu, entered in enumerate(counts):
            live._counters[vcpu, : len(seen)] += entered
        assert live._header is not None
        live._header["used"] = len(seen)


def test_counters_of_all_vcpus_are_added_and_begin_anew(echo: Module, tmp_path: Path) -> None:
    path = tmp_path / "live"
    seen = blocks(loaded(echo, HERE), HERE, CALL_1)
    with LiveFile.create(path, 2, {"any": "thing"}, slots=64) as live:
        assert live.about == {"any": "thing"}
        assert len(live.read().blocks) == 0
        plugin_writes(path, seen, [[1] * 7, [2] * 7])
        assert live.read().entered.tolist() == [3] * 7
        assert live.take().tolist() == [3] * 7
        assert live.read().entered.tolist() == [0] * 7
        plugin_writes(path, seen, [[0] * 7, [0, 0, 0, 0, 0, 5, 0]])
        with LiveFile(path) as other:  # another process sees the same
            assert other.read().entered.tolist() == [0, 0, 0, 0, 0, 5, 0]
            assert (other.read().blocks == seen).all()


def test_a_report_of_a_guest_that_still_runs(echo: Module, tmp_path: Path) -> None:
    """*Steps*: report, reset, report. *Verify*: the call is there, then nothing; what runs afterwards is."""
    path = tmp_path / "live"
    about = {"release": "7.3.4", "modules": [{"name": "echo", "build_id": echo.build_id, "file": str(ECHO)}]}
    LiveFile.create(path, 1, about, slots=64).close()
    seen = blocks(loaded(echo, HERE), HERE, CALL_1)
    plugin_writes(path, seen, [[1] * 7])
    run = CliRunner().invoke(cli, ["coverage", "report", str(path), "--functions"])
    assert run.exit_code == 0, run.output
    assert "4/5" in run.stdout
    assert CliRunner().invoke(cli, ["coverage", "reset", str(path)]).exit_code == 0
    assert "nothing has run of echo" in str(CliRunner().invoke(cli, ["coverage", "report", str(path)]).exception)
    plugin_writes(path, seen, [[0, 0, 0, 1, 0, 0, 0]])
    [record] = load(path).modules.values()
    assert record.contexts == {"": {SUM: 1}}


def test_of_the_nics_drivers_those_count_that_ran(echo: Module, tmp_path: Path) -> None:
    """*Verify*: another has no report, unless it was asked for, or none has run."""
    file = tmp_path / "other.ko"
    content = ECHO.read_bytes().replace(bytes.fromhex(echo.build_id), bytes(20))
    code = echo.section(".text").data()
    file.write_bytes(content.replace(code, bytes([0x90]) * len(code)))
    other = Module.read(file)
    for module in (echo, other):
        files.keep(module)
    for named, ran, found in (
        (False, True, ["echo"]),
        (True, True, ["echo", "other"]),
        (False, False, ["echo", "other"]),
    ):
        path = tmp_path / f"{named}{ran}"
        modules = [{"name": name, "build_id": module.build_id, "file": ""}
                   for name, module in (("echo", echo), ("other", other))]  # fmt: skip
        LiveFile.create(path, 1, {"release": "7.3.4", "named": named, "modules": modules}, slots=64).close()
        if ran:
            plugin_writes(path, blocks(loaded(echo, HERE), HERE, CALL_1), [[1] * 7])
        assert [record.name for record in load(path).modules.values()] == found


@pytest.mark.parametrize("damage", ["empty", "short", "magic", "used", "slots", "about"])
def test_a_damaged_shared_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "live"
    LiveFile.create(path, 1, {}, slots=64).close()
    content = bytearray(path.read_bytes())
    header = np.frombuffer(content, "<u8", 9, 32)  # after the magic: low, high, vcpus, slots, ... used, lost
    if damage == "empty":
        content = bytearray()
    elif damage == "short":
        content = content[:5000]
    elif damage == "magic":
        content[0] ^= 1
    elif damage == "used":
        header[7] = 65
    elif damage == "slots":
        header[3] = 1 << 60
    else:
        content[1024:1028] = b"\xff\xff\xff\xff"
        content[1028:1030] = b"{{"
    path.write_bytes(content)
    with pytest.raises(VmError, match=r"no coverage of a running guest|empty"):
        LiveFile(path)


# What a person sees.


def test_names_from_outside_do_no_harm(lines: Lines, tmp_path: Path) -> None:
    """*Steps*: a test's name has an escape sequence and HTML. *Verify*: neither reaches a terminal or a page."""
    evil = "tests/x.py::test[\x1b]0;gotcha\x07<script>alert(1)</script>]"
    coverage = recorded({evil: CALL_1})
    coverage.save(tmp_path / "cov")
    run = CliRunner().invoke(
        cli, ["coverage", "tests", str(tmp_path / "cov"), "--module", str(ECHO)], env={"COLUMNS": "200"}
    )
    assert run.exit_code == 0 and "gotcha" in run.stdout
    assert "\x1b" not in run.stdout
    made = report(lines, {evil: CALL_1})
    source = (ECHO.parent / "echo.c").read_text()
    index = write_pages(tmp_path / "pages", [made], {made.record.build_id: {SOURCE: source}})
    pages = {path.name: path.read_text() for path in index.parent.iterdir()}
    assert len(pages) == 2
    assert not any("<script>" in page for page in pages.values())
    assert "&lt;script&gt;" in pages["index.html"]
    [page] = [text for name, text in pages.items() if name != "index.html"]
    # Line 24 did not run, line 23 did, once.
    assert '<tr id="24" class="not"><td class="number">24</td><td class="number count">0</td>' in page
    assert '<tr id="23" class="ran">' in page and "complain" in page


def test_pages_show_the_source_where_it_is(tmp_path: Path) -> None:
    recorded({"": CALL_1}).save(tmp_path / "cov")
    words = ["coverage", "report", str(tmp_path / "cov"), "--module", str(ECHO), "--html", str(tmp_path / "pages")]
    run = CliRunner().invoke(cli, words)
    assert run.exit_code == 0, run.output
    [page] = [path for path in (tmp_path / "pages").iterdir() if path.name != "index.html"]
    assert "The source is not here" in page.read_text()
    assert CliRunner().invoke(cli, [*words, "--source", str(ECHO.parent)]).exit_code == 0
    assert "The source is not here" not in page.read_text()


def test_commands_on_a_file(tmp_path: Path) -> None:
    recorded({"one": CALL_1}).save(tmp_path / "a")
    recorded({"other": [(176, 13)]}).save(tmp_path / "b")
    both, options = [str(tmp_path / "a"), str(tmp_path / "b")], ["--module", str(ECHO)]
    assert CliRunner().invoke(cli, ["coverage", "merge", *both, "-o", str(tmp_path / "c")]).exit_code == 0

    def ask(*words: str) -> Any:
        run = CliRunner().invoke(cli, ["coverage", *words, *options])
        assert run.exit_code == 0, run.output + repr(run.exception)
        return run.stdout

    whole = json.loads(ask("report", str(tmp_path / "c"), "--json"))
    assert whole == json.loads(ask("report", *both, "--json"))
    assert whole[0]["functions"] == {"ran": 3, "total": 4}
    assert json.loads(ask("tests", str(tmp_path / "c"), "--function", "never", "--json")) == {"other": 1}
    assert json.loads(ask("report", *both, "--context", "o[nx]e", "--json"))[0]["functions"]["ran"] == 2
    assert "all of it" in ask("report", str(tmp_path / "a"), "--missing")
    run = CliRunner().invoke(cli, ["coverage", "tests", *both, *options, "--function", "nevr"])
    assert "did you mean 'never'" in str(run.exception)
    run = CliRunner().invoke(cli, ["coverage", "report", *both, *options, "--context", "three"])
    assert "no test is called three" in str(run.exception)


def test_ranges_follow_the_lines_that_there_are() -> None:
    assert ranges([3, 7, 12], [1, 3, 7, 9, 12, 13]) == ((3, 7), (12, 12))
    assert ranges([], [1]) == ()


def test_a_share_is_whole_or_nothing_only_if_it_is() -> None:
    assert [Share(ran, 10_000).percent for ran in (0, 1, 9_999, 10_000)] == ["0.0 %", "0.1 %", "99.9 %", "100.0 %"]
    assert Share(0, 0).percent == ""


def test_a_comma_in_a_path_is_none_of_qemus() -> None:
    assert plugin_word(Path("/a,b/p.so"), live=Path("/c")) == "file=/a,,b/p.so,live=/c"
