"""The selftests' output and the file of what is expected of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nicmodel.cli.selftests import _rows
from nicmodel.vm import compiler, tools
from nicmodel.vm.errors import VmError
from nicmodel.vm.selftests import (
    Expectation,
    Outcome,
    Program,
    Recipe,
    Result,
    judge,
    known_devices,
    known_versions,
    parse_ktap,
)

OUTPUT = """\
TAP version 13
1..6
ok 1 hds.get_hds
# Exception| Traceback (most recent call last):
# Exception|     raise CmdExitFailure("Command failed", self)
# Exception|   STDERR: Error: gve: XDP is not supported for Rx buf len 4096, only 2048 supported.
# Exception|\x20
not ok 2 hds.set_xdp
ok 3 hds.set_hds_thresh_max # SKIP hds-thresh not supported by device
ok 4 hds.nsim # XFAIL Test only works on netdevsim
# Check| At /usr/lib/kselftest/drivers/net/hds.py, line 7, in check:
# Check failed 1 != 2
not ok 5 hds.check.ipv4_df0
"""

RESULTS = [
    Result("get_hds", "pass"),
    Result("set_xdp", "fail", "STDERR: Error: gve: XDP is not supported for Rx buf len 4096, only 2048 supported."),
    Result("set_hds_thresh_max", "skip", "hds-thresh not supported by device"),
    Result("nsim", "xfail", "Test only works on netdevsim"),
    Result("check.ipv4_df0", "fail", "failed 1 != 2"),
    Result("#6", "none"),
]


def test_ktap() -> None:
    assert parse_ktap(OUTPUT) == RESULTS


def test_no_output_has_no_results() -> None:
    assert parse_ktap("Traceback (most recent call last):\n  ImportError\n") == []


def program(expected: dict[str, str], cases: int = 6) -> Program:
    entries = tuple(Expectation.parse(pattern, text) for pattern, text in expected.items())
    return Program("hds", "drivers/net/hds.py", cases, expected=entries)


EXPECTED = {
    "set_xdp": "fail: the driver wants small buffers",
    "set_hds_thresh_*": "skip: the driver has no threshold",
    "nsim": "xfail: netdevsim only",
    "check.*": "pass or fail: a matter of time",
    "#6": "crash or none: the driver reads its rings when it has none",
}


def test_as_expected() -> None:
    assert judge(program(EXPECTED), RESULTS) == []


@pytest.mark.parametrize(
    ("expected", "cases", "surprise"),
    [
        ({**EXPECTED, "set_xdp": "skip: no XDP"}, 6, "hds: set_xdp: fail (STDERR: Error: gve: XDP is not"),
        ({**EXPECTED, "get_hds": "fail: broken"}, 6, "hds: get_hds: pass, expected fail"),
        ({key: text for key, text in EXPECTED.items() if key != "nsim"}, 6, "hds: nsim: xfail"),
        (EXPECTED, 7, "hds: 6 cases, expected 7"),
        ({**EXPECTED, "gone": "skip: was there once"}, 6, "hds: no case gone"),
    ],
)
def test_every_difference_is_a_surprise(expected: dict[str, str], cases: int, surprise: str) -> None:
    [said] = judge(program(expected, cases), RESULTS)
    assert said.startswith(surprise)


def test_a_quick_run_may_leave_cases_out_but_not_all() -> None:
    assert judge(program(EXPECTED), RESULTS[:2], quick=True) == []
    assert judge(program(EXPECTED), [], quick=True) == ["hds: no case has run"]


def test_a_quick_run_whose_pattern_fits_no_case_is_a_surprise() -> None:
    named = replace(program(EXPECTED), quick=("get_*", "set_xdp", "set_ring"))
    assert judge(named, RESULTS[:2], quick=True) == ["hds: no case set_ring, which the quick run names"]
    assert judge(replace(named, cases=2), RESULTS[:2]) == [f"hds: no case {name}" for name in list(EXPECTED)[1:]]


def test_a_failure_for_another_reason_is_a_surprise() -> None:
    timed = program({"*": "pass or skip or fail (>= 0.15): a matter of time"}, cases=1)
    assert judge(timed, [Result("key", "pass")]) == []
    assert judge(timed, [Result("key", "skip", "no key")]) == []
    assert judge(timed, [Result("key", "fail", "failed 1.2 >= 0.15")]) == []
    assert judge(timed, [Result("key", "fail", "failed 1 != 0")]) == [
        "hds: key: fail (failed 1 != 0), expected pass or skip or fail (>= 0.15)"
    ]
    assert judge(timed, [Result("key", "xfail")]) == ["hds: key: xfail, expected pass or skip or fail (>= 0.15)"]


def test_a_surprise_is_not_given_the_reason_of_what_was_expected() -> None:
    timed = program({"*": "fail (>= 0.15): a matter of time"}, cases=2)
    results = (Result("key", "fail", "failed 1.2 >= 0.15"), Result("flap", "fail", "failed 1 != 0"))
    outcome = Outcome(timed, results, tuple(judge(timed, results)), 1.0, "")
    assert [row["reason"] for row in _rows(outcome)] == ["a matter of time", ""]


def test_an_expectation_needs_a_reason() -> None:
    with pytest.raises(VmError, match="outcome: reason"):
        Expectation.parse("check_fec", "skip")


@pytest.mark.parametrize("device", known_devices())
def test_the_files_are_well_formed(device: str) -> None:
    recipe = Recipe.read(device)
    assert recipe.device == device
    for entry in recipe.programs.values():
        assert entry.cases is not None and (entry.cases > 0 or not entry.expected)
        assert entry.nics in recipe.nics
        for expectation in entry.expected:
            assert set(expectation.outcomes) <= {"pass", "fail", "skip", "xfail", "crash", "none"}
    assert all(recipe.inapplicable.values())


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the programs, and what is known of them with a kind of NIC."""
    (tmp_path / "selftests.toml").write_text(
        '[program.ping]\npath = "drivers/net/ping.py"\ncases = 7\n'
        '[program.hds]\npath = "drivers/net/hds.py"\ncases = 1\n'
        '[program.loopback]\npath = "drivers/net/hw/loopback.sh"\ncases = 1\n'
    )
    (tmp_path / "selftests-any.toml").write_text(
        'kernel = "7.2"\ndevice = "any"\ndriver = "anydrv"\n[nics]\nplain = "--mtu 9000"\n'
        '[inapplicable]\n"loopback.sh" = "no loopback"\n'
        '[program.ping]\ncases = 8\nsetup = "ip link"\n[program.ping.expected]\nsome = "fail: broken"\n'
    )
    return tmp_path


def test_a_recipe_is_of_programs_and_of_a_device(files: Path) -> None:
    recipe = Recipe.read("any", files)
    assert (recipe.kernel, recipe.driver, recipe.nics) == ("7.2", "anydrv", {"plain": "--mtu 9000"})
    ping, hds = recipe.programs.values()
    assert (ping.cases, ping.setup, ping.expected[0].pattern) == (8, "ip link", "some")
    assert (hds.cases, hds.setup, hds.expected) == (1, "true", ())
    with pytest.raises(VmError, match=r"no selftests-other.toml: say one of any"):
        Recipe.read("other", files)
    with (files / "selftests-any.toml").open("a") as file:
        file.write("[program.pong]\n")
    with pytest.raises(VmError, match=r"selftests-any.toml: there is no program 'pong'"):
        Recipe.read("any", files)


def test_choosing(files: Path) -> None:
    recipe = Recipe.read("any", files)
    assert [entry.name for entry in recipe.chosen([])] == ["ping", "hds"]
    assert [entry.name for entry in recipe.chosen(["hds"])] == ["hds"]
    with pytest.raises(VmError, match="no loopback"):
        recipe.chosen(["loopback.sh"])
    with pytest.raises(VmError, match="say one of ping, hds"):
        recipe.chosen(["pong"])


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("hw", ["devmem", "rss_ctx"]),
        ("drivers/net/hw/", ["devmem", "rss_ctx"]),
        ("hw/devmem.py", ["devmem"]),
        ("drivers/net/ping.py", ["ping"]),
        ("drivers/net", ["ping", "devmem", "rss_ctx"]),
    ],
)
def test_choosing_by_file_and_folder(name: str, chosen: list[str]) -> None:
    programs = [Program(Path(path).stem, path, 1) for path in TREE[:3]]
    recipe = Recipe("7.3", {one.name: one for one in programs}, {"loopback.sh": "no loopback"})
    assert [one.name for one in recipe.chosen([name])] == chosen


#: As kselftest-list.txt has them, but for the colon.
TREE = ("drivers/net/ping.py", "drivers/net/hw/devmem.py", "drivers/net/hw/rss_ctx.py", "drivers/net/hw/ping.py")


def test_the_recipe_of_another_tree_has_what_is_there(tmp_path: Path) -> None:
    files = ("drivers/net:ping.py", "drivers/net/hw:devmem.py", "drivers/net/hw:ping.py", "drivers/net/hw:new.py")
    (tmp_path / "kselftest-list.txt").write_text(
        "".join(f"{line}\n" for line in (*files, "drivers/net/hw:loopback.sh"))
    )
    programs = [Program(Path(path).stem, path, 1) for path in TREE[:3]]
    recipe = Recipe("7.3", {one.name: one for one in programs}, {"loopback.sh": "no loopback"}).of_tree(tmp_path)
    assert {name: one.cases for name, one in recipe.programs.items()} == {
        "ping": 1, "devmem": 1, "hw/ping.py": None, "new": None,
    }  # fmt: skip
    assert all(name == one.name for name, one in recipe.programs.items())
    assert judge(recipe.programs["new"], [Result("any", "fail")]) == []
    assert judge(recipe.programs["new"], []) == ["new: no case has run"]


def test_which_release_is_known() -> None:
    recipe = Recipe("7.3", {}, {})
    assert recipe.is_known("7.3.4+deb13-cloud-amd64")
    assert not recipe.is_known("7.30.1")
    assert not recipe.is_known("6.12.117")


def kernel_tree(root: Path) -> Path:
    """As much of a kernel's source as is looked at."""
    for name, content in {
        "Makefile": "VERSION = 6\nPATCHLEVEL = 19\nSUBLEVEL = 0\n",
        "MAINTAINERS": "",
        "Documentation/netlink/specs/netdev.yaml": "name: netdev\n",
        "include/linux/gve.h": "",
        "include/generated/autoconf.h": "#define CONFIG_GVE 1\n",
        "scripts/Kbuild.include": "",
        "arch/x86/include/generated/asm/x.h": "",
        "arch/x86/Makefile": "",
        "tools/testing/selftests/drivers/net/ping.py": "print('1..0')\n",
        "tools/testing/selftests/drivers/net/hw/iou-zcrx": "\x7fELF",
        "tools/lib/bpf/libbpf.a": "!<arch>\n",
        "drivers/net/ethernet/google/gve/gve_main.c": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "tools/testing/selftests/drivers/net/link").symlink_to("hw")
    return root


def test_of_a_tree_only_its_source_is_taken(tmp_path: Path) -> None:
    tree = kernel_tree(tmp_path)
    assert tools.source_release(tree) == "6.19"
    taken = [str(file.relative_to(tree)) for file in tools._source_files(tree)]
    assert sorted(taken) == [
        "Documentation/netlink/specs/netdev.yaml", "MAINTAINERS", "Makefile", "arch/x86/Makefile",
        "include/linux/gve.h", "scripts/Kbuild.include", "tools/testing/selftests/drivers/net/link",
        "tools/testing/selftests/drivers/net/ping.py",
    ]  # fmt: skip


def test_a_tree_is_copied_so_that_no_file_of_it_is_written_to(tmp_path: Path) -> None:
    tree, copy = kernel_tree(tmp_path / "tree"), tmp_path / "copy"
    for file in tools._source_files(tree):
        compiler.link_tree(file, copy / file.relative_to(tree))
    assert (copy / "Makefile").read_text() == (tree / "Makefile").read_text()
    assert not (copy / "Makefile").samefile(tree / "Makefile")
    assert (copy / "Makefile").stat().st_mtime_ns == (tree / "Makefile").stat().st_mtime_ns
    assert (copy / "tools/testing/selftests/drivers/net/link").is_symlink()


@pytest.mark.parametrize("gone", ["Makefile", "MAINTAINERS", "tools/testing/selftests/drivers/net/ping.py"])
def test_what_is_no_source_of_a_kernel(tmp_path: Path, gone: str) -> None:
    tree = kernel_tree(tmp_path)
    if gone.endswith("ping.py"):
        shutil.rmtree(tree / "tools/testing/selftests/drivers/net")
        gone = "tools/testing/selftests/drivers/net"
    else:
        (tree / gone).unlink()
    with pytest.raises(VmError, match=f"is no source of a kernel, it lacks {gone}"):
        tools.source_release(tree)


def test_an_older_kernel_has_expectations_of_its_own(tmp_path: Path) -> None:
    """They come before those of the newest; a program that has not run there is unknown."""
    shared = program({"*_hds": "skip: none", "xdp": "fail: broken"}, cases=3)
    recipe = Recipe("7.3", {"hds": shared, "ping": Program("ping", "ping.py", 7)}, {})
    (tmp_path / "selftests-gvnic-6.12.toml").write_text(
        'kernel = "6.12"\n[program.hds]\ncases = 2\n[program.hds.expected]\nget_hds = "fail (no): no such thing"\n'
    )
    older = recipe.of_kernel("6.12.117+deb13-cloud-amd64", tmp_path)
    assert older.kernel == "6.12" and older.is_known("6.12.117") and older.programs["ping"].cases is None
    ended = [Result("get_hds", "fail", "no"), Result("set_hds", "skip")]
    assert judge(older.programs["hds"], ended) == []
    assert judge(shared, ended)[0] == "hds: get_hds: fail (no), expected skip"
    assert recipe.of_kernel("6.13.1", tmp_path) is recipe
    (tmp_path / "selftests-gvnic-6.12.toml").write_text('kernel = "6.12"\n[program.hdx]\n')
    with pytest.raises(VmError, match="there is no program 'hdx'"):
        recipe.of_kernel("6.12.1", tmp_path)


def test_a_program_that_ends_before_its_first_case() -> None:
    none = replace(program({}, cases=0), quick=("get_*",))
    for quick in (False, True):
        assert judge(none, [], quick=quick) == []
    assert judge(none, RESULTS) == ["hds: 6 cases, expected none"]


@pytest.mark.parametrize("device", known_devices())
def test_what_is_known_of_older_kernels_is_well_formed(device: str) -> None:
    newest, *older = known_versions(device)
    assert newest == Recipe.read(device).kernel
    for version in older:
        recipe = Recipe.read(device).of_kernel(f"{version}.1")
        assert recipe.kernel == version
        assert any(entry.cases is not None for entry in recipe.programs.values())
