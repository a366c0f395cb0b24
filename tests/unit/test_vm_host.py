"""What the host lacks is told in one sentence, before anything is downloaded."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nicmodel.vm import doctor, host
from nicmodel.vm.errors import VmError
from nicmodel.vm.host import Check, State
from nicmodel.vm.packages import Packages, obtain

#: Not in the cache, ever.
REQUEST = Packages("nothing", ("no-such-package",))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "nicmodel"


@pytest.fixture
def nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls apt now has begun to download."""

    def run(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", run)


def nicmodel(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nicmodel.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)


def test_programs_of_sbin_are_found_with_an_ordinary_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "sbin/ip"
    tool.parent.mkdir()
    tool.touch(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(host, "_SYSTEM", (str(tool.parent),))
    assert host.program("ip") == str(tool)
    with pytest.raises(VmError, match="apt install coreutils"):
        host.program("chroot")


def test_a_missing_program_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "find_program", lambda name: None if name == "setpriv" else "/bin/true")
    check = host.programs()
    assert check.state is State.BAD
    assert str(check) == "programs: setpriv missing. apt install util-linux"


def test_what_only_tests_need_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "find_program", lambda name: None if name in host.OPTIONAL else "/bin/true")
    assert host.programs().state is State.GOOD


@pytest.mark.parametrize("check", ["programs", "cache", "room"])
@pytest.mark.usefixtures("empty_cache", "nothing_is_run")
def test_nothing_is_downloaded_to_a_host_that_lacks_something(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    monkeypatch.setattr(host, check, lambda *_: Check("subject", State.BAD, "what is wrong", "What to do"))
    with pytest.raises(VmError, match=r"subject: what is wrong. What to do\n.*nicmodel doctor"):
        obtain(REQUEST)


def test_no_room_is_told_with_figures(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free", lambda folder: 300 << 20)
    check = host.room(1 << 30)
    assert check.state is State.BAD
    assert check.found == f"315 MB free for {empty_cache}"
    assert "1,074 MB are needed" in check.advice and "XDG_CACHE_HOME" in check.advice


@pytest.mark.parametrize(
    "said",
    [
        "E: Write error - write (28: No space left on device)",
        "tar: ./usr/bin/gcc: Wrote only 512 of 10240 bytes\ntar: x: Cannot write: No space left on device",
        "E: You don't have enough free space in /var/cache/apt/archives/.",
        "dpkg-deb: error: Disk quota exceeded",
    ],
)
def test_a_full_disk_is_told_as_one(tmp_path: Path, said: str) -> None:
    with pytest.raises(VmError, match=r"disk is full.*XDG_CACHE_HOME"):
        host.judge(2, said, "the image", tmp_path)


def test_a_full_disk_is_seen_whatever_the_program_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Err:1 http://mirror trixie InRelease\n  404  Not Found"
    assert host.is_full(said, tmp_path) is None
    monkeypatch.setattr(host, "free", lambda folder: 0)
    with pytest.raises(VmError, match="disk is full"):
        host.judge(100, said, "the image", tmp_path)


def test_another_failure_is_told_in_the_programs_own_words(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="the image could not be built:\nno such option"):
        host.run(["sh", "-c", "echo no such option; exit 3"], "the image", tmp_path)
    assert host.run(["sh", "-c", "echo well"], "the image", tmp_path) == "well\n"


def test_no_room_for_files_counts_as_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(os.statvfs(tmp_path))
    found[5:8] = [1000, 0, 0]  # inodes: in all, free, free for this user
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(found))
    assert host.free(tmp_path) == 0


@pytest.mark.parametrize("number", sorted(host.STATE_OF_HOST))
def test_errors_that_are_the_hosts_state_are_a_sentence(number: int, tmp_path: Path) -> None:
    sentence = host.explain(OSError(number, os.strerror(number), str(tmp_path / "file")))
    assert sentence and sentence.startswith(str(tmp_path))
    assert ("disk is full" in sentence) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert host.explain(OSError(number, os.strerror(number)))


def test_other_errors_keep_their_traceback() -> None:
    assert host.explain(OSError(errno.EBADF, "Bad file descriptor")) is None


def refuse(found: str = "the kernel refuses them") -> Callable[[], Check]:
    return lambda: Check("user namespaces", State.BAD, found, "Allow them")


def test_without_user_namespaces_nothing_can_be_compiled_but_by_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "can_make_devices", lambda folder: False)
    check = host.building(refuse())
    assert check.state is State.BAD
    assert "user namespaces" in check.found and check.advice.startswith("Allow them; or run as root")
    assert host.building(lambda: Check("user namespaces", State.GOOD, "")).state is State.GOOD
    monkeypatch.setattr(host, "can_make_devices", lambda folder: True)
    assert host.building(refuse()).state is State.GOOD


def test_a_setting_that_forbids_user_namespaces_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = tmp_path / "max_user_namespaces"
    setting.write_text("0\n")
    monkeypatch.setattr(host, "_SETTINGS", ((str(setting), "0", "sudo sysctl user.max_user_namespaces=10000"),))
    monkeypatch.setattr(host, "program", lambda name: "/bin/false")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert host.user_namespaces().advice == "Allow them: sudo sysctl user.max_user_namespaces=10000"
    setting.write_text("100\n")
    assert "container" in host.user_namespaces().advice


def test_doctor_shows_every_check_and_downloads_nothing(empty_cache: Path) -> None:
    checks = doctor.examine()
    assert len(checks) == len(doctor.CHECKS) == len({check.subject for check in checks})
    assert all(check.found for check in checks)
    assert not (empty_cache / "trees").exists() and not (empty_cache / "apt").exists()


def test_a_check_that_fails_itself_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Check:
        raise PermissionError(errno.EACCES, "Permission denied", "/proc/secret")

    monkeypatch.setattr(doctor, "CHECKS", (broken,))
    [check] = doctor.examine()
    assert check.state is State.BAD and "/proc/secret" in check.found


def test_help_needs_no_cache(tmp_path: Path) -> None:
    """Root may write where it likes: a file stands where the folder should be."""
    (tmp_path / "cache").touch()
    for words in (["--help"], ["serve", "--help"], ["demo", "--help"]):
        done = nicmodel(*words, XDG_CACHE_HOME=str(tmp_path / "cache"))
        assert done.returncode == 0 and "Usage" in done.stdout and not done.stderr, done.stderr


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    done = nicmodel("vm", "--prepare", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cache folder: " in done.stderr and "cannot be written" in done.stderr


@pytest.mark.parametrize("columns", ["60", "100"])
def test_output_is_ascii_where_the_locale_is(columns: str) -> None:
    done = nicmodel("doctor", LC_ALL="C", COLUMNS=columns, PYTHONIOENCODING="")
    assert done.stdout.isascii() and "ok" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= int(columns)
    assert not nicmodel("doctor", LC_ALL="C.UTF-8", COLUMNS=columns).stdout.isascii()
