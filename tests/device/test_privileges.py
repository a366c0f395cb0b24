"""``--run-as``: what a server may do once its sockets and wires are open."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import nicmodel
from nicmodel.cli.main import cli
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.vm.server import NicServer

NOBODY = pwd.getpwnam("nobody")


def readable_to_all(path: Path) -> bool:
    """Whether any user may read what is in a folder."""
    return all(part.stat().st_mode & 0o005 == 0o005 for part in [path, *path.parents])


def status(pid: int) -> dict[str, str]:
    """The kernel's word on a process."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def theirs(folder: str) -> Path:
    """A folder that is nobody's now."""
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    return Path(folder)


def serve_a_driver(server: NicServer) -> None:
    """All that a driver does: also what is imported or compiled late."""
    with Driver(server.sockets[0]) as driver:
        driver.probe()
        driver.open(header_split=True)
        for queue in driver.tx:
            driver.send(queue, bytes(1000))
        driver.device_status()
    with Driver(server.sockets[0]) as driver:
        driver.probe()
        driver.remove()
    os.kill(server.pid, signal.SIGUSR1)
    assert "Traceback" not in server.log()


def test_the_same_user_without_privileges() -> None:
    """No capability is left, nor a way to one."""
    own = str(os.getuid())
    with NicServer(["--run-as", own]) as server:
        said = status(server.pid)
        assert said["Uid"].split() == [own] * 4
        assert {said[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert said["NoNewPrivs"] == "1"
        serve_a_driver(server)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(
    not readable_to_all(Path(nicmodel.__file__).parent) or not readable_to_all(Path(sys.executable).resolve().parent),
    reason="another user cannot read this installation",
)
def test_another_user() -> None:
    """Root opens a raw packet socket in a network namespace of its own; nobody serves it, and writes the report."""
    with (
        tempfile.TemporaryDirectory(prefix="nicmodel-") as folder,
        NicServer(
            ["--wire", "packet:lo", "--run-as", "nobody"], prefix=("unshare", "--net"), folder=theirs(folder)
        ) as server,
    ):
        said = status(server.pid)
        assert said["Uid"].split() == [str(NOBODY.pw_uid)] * 4
        assert said["Gid"].split() == [str(NOBODY.pw_gid)] * 4
        assert said["Groups"].split() == [str(NOBODY.pw_gid)]
        assert {said[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert said["NoNewPrivs"] == "1"
        serve_a_driver(server)
        assert server.stop()[0]["vfio_user"]["clients"] == 2
        assert not server.sockets[0].exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to lose")
def test_a_user_who_cannot_read_nicmodel_is_refused(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "nicmodel").symlink_to(Path(nicmodel.__file__).parent)
    for part in (tmp_path, *list(tmp_path.parents)[:-2]):
        part.chmod(0o755)
    program = (
        f"import sys; sys.path.insert(0, {str(hidden)!r})\n"
        "from nicmodel.cli.privileges import User\n"
        "User(65533, 65533).become()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert f"PermissionError: [Errno 13] user 65533 cannot read {hidden}" in ended.stderr


@pytest.mark.parametrize(
    ("user", "said"),
    [("nobodi", "there is no user 'nobodi'; did you mean 'nobody'?"), ("4294967295", "is not a number of a user")],
)
def test_no_such_user(user: str, said: str) -> None:
    result = CliRunner().invoke(cli, ["serve", "--socket", "/nowhere", "--run-as", user])
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may become anybody")
def test_becoming_somebody_else_takes_root(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "nicmodel.cli", "serve", "--socket", str(tmp_path / "nic.sock"), "--run-as", "root"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1
    assert "Error: --run-as root: Operation not permitted" in ended.stderr
