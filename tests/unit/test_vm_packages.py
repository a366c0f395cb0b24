"""Package trees: what is promised about the cache, and what the user is told when a download fails."""

import fcntl
import json
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from nicmodel.cache import cache_dir
from nicmodel.vm import packages
from nicmodel.vm.errors import VmError
from nicmodel.vm.packages import Packages, building, locked, mirror, obtain, write_whole

needs_apt = pytest.mark.skipif(not shutil.which("apt-get"), reason="apt-get is missing")

TOOL = Packages("tool", ("tool",))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_dir()


def program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text("#!/bin/sh\n" + textwrap.dedent(script))
    file.chmod(0o755)


@pytest.fixture
def fake_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt-get that offers one package, version 1, and a dpkg-deb that unpacks it into one file; their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "apt-get", """
        echo "$@" >> $(dirname $0)/calls
        case "$*" in
            install*) echo "'http://mirror/pool/tool_1%3a1_all.deb' tool_1%3a1_all.deb 100 SHA256:0" ;;
            download*) echo "dlstatus:1:50.0:Retrieving" ; touch tool.deb ;;
        esac
        """)  # fmt: skip
    program(folder, "dpkg-deb", 'touch "$3/content"')
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("NICMODEL_MIRROR", "http://mirror/debian")
    return folder


def test_a_tree_is_built_once_and_recorded(fake_apt: Path, cache: Path) -> None:
    tree = obtain(TOOL)
    assert (tree.path / "content").exists()
    assert tree.versions == {"tool": "1:1"}
    calls = (fake_apt / "calls").read_text()
    assert "download tool=1:1 " in calls
    assert obtain(TOOL) == tree
    assert (fake_apt / "calls").read_text() == calls
    record = json.loads((cache / "trees" / f"{TOOL.key}.json").read_text())
    assert record == {"tree": tree.path.name, "suite": "trixie", "versions": {"tool": "1:1"}}


def test_a_failed_download_leaves_no_tree(fake_apt: Path, cache: Path) -> None:
    program(fake_apt, "dpkg-deb", 'touch "$3/part"; echo "E: broken" >&2; exit 2')
    with pytest.raises(VmError, match="broken"):
        obtain(TOOL)
    assert [path.name for path in (cache / "trees").iterdir()] == [f"{TOOL.key}.lock"]
    program(fake_apt, "dpkg-deb", 'touch "$3/content"')
    assert [path.name for path in obtain(TOOL).path.iterdir()] == ["content"]


def test_an_update_keeps_the_old_tree_for_those_who_use_it(fake_apt: Path) -> None:
    old = obtain(TOOL)
    script = (fake_apt / "apt-get").read_text().replace("1%3a1", "1%3a2")
    (fake_apt / "apt-get").write_text(script)
    assert obtain(TOOL) == old
    new = obtain(TOOL, update=True)
    assert new.versions == {"tool": "1:2"}
    assert new.path != old.path
    assert (old.path / "content").exists()
    assert obtain(TOOL) == new


def test_sources_name_the_base_suite_and_the_mirror(fake_apt: Path, cache: Path) -> None:
    obtain(Packages("tool", ("tool",), suite="trixie-backports"))
    sources = (cache / "apt/trixie-backports/sources.list").read_text().splitlines()
    assert [line.partition("] ")[2] for line in sources] == [
        "http://mirror/debian trixie main",
        "http://mirror/debian trixie-backports main",
    ]


def test_only_what_is_to_be_kept_is_fetched(fake_apt: Path) -> None:
    assert obtain(Packages("tool", ("tool",), keep="linux-")).versions == {}


def test_the_hosts_debian_mirror_is_found(tmp_path: Path, fake_apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NICMODEL_MIRROR")
    program(fake_apt, "apt-get", """
        [ "$1" = indextargets ] && echo "Debian Debian-Security http://a/debian-security/
        Debian Debian http://a/debian/"
        """.replace("        Debian Debian http", "Debian Debian http"))  # fmt: skip
    assert mirror() == "http://a/debian/"


def test_the_mirror_is_found_before_the_first_update(fake_apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NICMODEL_MIRROR")
    program(fake_apt, "apt-get", """
        [ "$1" = update ] && echo "'http://a/debian-security/dists/x/InRelease' x 0" &&
            echo "'http://a/debian/dists/x/InRelease' x 0"
        """)  # fmt: skip
    assert mirror() == "http://a/debian"


def test_a_host_without_a_debian_mirror_is_told_to_name_one(fake_apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NICMODEL_MIRROR")
    program(
        fake_apt, "apt-get", "echo Ubuntu Ubuntu http://a/ubuntu/; echo \"'http://a/ubuntu/dists/x/InRelease' x 0\""
    )
    with pytest.raises(VmError, match="NICMODEL_MIRROR=http"):
        mirror()


@needs_apt
def test_an_unreachable_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NICMODEL_MIRROR", "http://127.0.0.1:1/debian")
    with pytest.raises(VmError, match=r"^cannot fetch packages of Debian trixie: Failed to fetch .*127\.0\.0\.1:1"):
        obtain(TOOL)


@needs_apt
def test_unsigned_packages_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror with an index, but without a signature that the keyring knows."""
    suite = tmp_path / "mirror/dists/trixie"
    (suite / "main/binary-amd64").mkdir(parents=True)
    (suite / "main/binary-amd64/Packages").write_text("")
    (suite / "Release").write_text("Suite: trixie\nCodename: trixie\nComponents: main\nArchitectures: amd64\n")
    monkeypatch.setenv("NICMODEL_MIRROR", f"file:{tmp_path}/mirror")
    with pytest.raises(VmError, match="keyring cannot verify"):
        obtain(TOOL)


def test_the_hosts_apt_state_is_left_alone(fake_apt: Path, cache: Path) -> None:
    obtain(TOOL)
    config = (cache / "apt/trixie/apt.conf").read_text()
    for setting in ("Dir::State ", "Dir::State::status ", "Dir::Cache ", "Dir::Etc::sourcelist "):
        assert f'{setting}"{cache}/apt/trixie/' in config
    calls = (fake_apt / "calls").read_text().splitlines()
    assert all(f"--config-file={cache}/apt/trixie/apt.conf" in call for call in calls)


def test_building_publishes_only_what_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "thing"
    with pytest.raises(RuntimeError), building(path) as folder:
        assert folder
        (folder / "half").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with building(path) as folder:
        assert folder
        (folder / "whole").touch()
        assert not path.exists()
    assert (path / "whole").exists()
    with building(path) as folder:
        assert folder is None


def test_what_a_killed_process_has_left_is_deleted(tmp_path: Path) -> None:
    """But not what another one is making."""
    program = (
        "import os, pathlib, sys, time\n"
        "from nicmodel.vm.packages import building\n"
        "with building(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').touch(); print(folder, flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "one")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            left = Path(process.stdout.readline().strip())
            with building(tmp_path / "two"):
                assert (left / "half").exists()
        finally:
            process.kill()
    assert left.exists()
    with building(tmp_path / "three"):
        assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["three", "two"]


def test_a_lock_is_waited_for_and_freed_by_death(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = (
        "import pathlib, sys, time\n"
        "from nicmodel.vm.packages import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 'a test'): print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        started = time.monotonic()
        subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
        with locked(lock, "a test"):
            assert time.monotonic() - started > 0.4


def test_write_whole_leaves_no_leftovers(tmp_path: Path) -> None:
    write_whole(tmp_path / "folder/file", "one")
    write_whole(tmp_path / "folder/file", b"two")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "folder").iterdir()] == [("file", b"two")]


def test_programs_of_a_tree_run_with_its_libraries_alone() -> None:
    tree = packages.Tree(Path("/tree"), {})
    assert tree.command("usr/bin/prog", "-x") == [
        "/tree/usr/lib64/ld-linux-x86-64.so.2",
        *("--library-path", "/tree/usr/lib/x86_64-linux-gnu", "/tree/usr/bin/prog", "-x"),
    ]


def test_apt_works_on_an_index_for_one_process_at_a_time(fake_apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own files are replaced by an update; whoever downloads meanwhile fails."""
    run, met = packages._AptRoot._run, set()

    def watched(root: packages._AptRoot, command: list[str], *arguments: Any) -> str:
        if command[0] == "apt-get":
            with (root.path / "lock").open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            met.add(command[1])
        return run(root, command, *arguments)

    monkeypatch.setattr(packages._AptRoot, "_run", watched)
    obtain(TOOL)
    assert met == {"update", "install", "download"}
