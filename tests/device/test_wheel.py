"""An installed wheel is enough: nothing is taken from the checkout that it was built in.

The wheel is installed into an environment of its own that has, besides, just what the wheel's metadata ask for and
pytest: linked from here, since a test downloads nothing. Code is not compiled there, which would take a minute.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

from nicmodel.vfio_user import Client

ROOT = Path(__file__).parents[2]
_LIMIT = 120


class Installed:
    """An environment with nicmodel from its wheel; `home` is an empty folder, where everything is run."""

    def __init__(self, folder: Path) -> None:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=_LIMIT)
        (self.wheel,) = folder.glob("nicmodel-*.whl")
        environment = folder / "environment"
        venv.create(environment, symlinks=True)
        self.bin = environment / "bin"
        variables = {"base": str(environment), "platbase": str(environment)}
        site = Path(sysconfig.get_path("purelib", "venv", variables))
        for one in _needed(["pytest", "nicmodel"]):
            if one.name != "nicmodel":
                _link(one, site)
        install = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.bin / "python"),
            "install",
            "--quiet",
            "--no-index",
        ]
        # Not --no-deps: pip refuses if what is linked does not satisfy the wheel's metadata.
        subprocess.run([*install, str(self.wheel)], check=True, timeout=_LIMIT)
        self.home = folder / "home"
        self.home.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
        self.environment = kept | {"NUMBA_DISABLE_JIT": "1", "COLUMNS": "100", "PATH": f"{self.bin}:{os.defpath}"}

    def run(self, *words: str) -> str:
        """What a command of the environment prints; it has to succeed."""
        run = subprocess.run(
            words, cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=_LIMIT,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout


def _needed(names: list[str]) -> list[Distribution]:
    """Distributions by name with all that they need, extras left out."""
    found: dict[str, Distribution] = {}
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another system or Python
            continue
        requirements = found[name].requires or []
        names += [match[0] for text in requirements if "extra" not in text and (match := re.match(r"[\w.-]+", text))]
    return list(found.values())


def _link(one: Distribution, site: Path) -> None:
    for name in {file.parts[0] for file in one.files or [] if file.parts[0] != ".."}:
        target = site / name
        if name != "__pycache__" and not target.exists():
            target.symlink_to(Path(str(one.locate_file(name))))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


def test_it_is_the_wheel_that_runs(installed: Installed) -> None:
    places = installed.run("python", "-c", "import nicmodel, sys; print(nicmodel.__file__, *sys.path, sep='\\n')")
    assert str(installed.bin.parent) in places.splitlines()[0]
    assert str(ROOT) not in places.splitlines()


def test_every_command_has_its_help(installed: Installed) -> None:
    """Steps: ask each command and sub-command for help. Verify: it has one, and imports nothing that is missing."""
    program = """
import click
from nicmodel.cli.main import cli

def commands(group, context, *names):
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield *names, name
        if isinstance(command, click.Group):
            yield from commands(command, click.Context(command), *names, name)

for names in commands(cli, click.Context(cli)):
    cli.main([*names, "--help"], standalone_mode=False)
    print("==", *names)
"""
    said = installed.run("python", "-c", program)
    assert {"demo", "serve", "vm", "selftests", "experiment devmem", "config", "fault add"} <= set(
        re.findall(r"^== (.*)", said, re.MULTILINE)
    )
    assert "Usage:" in installed.run("nicmodel", "--help")


def test_data_that_comes_along(installed: Installed) -> None:
    """What users see, and what guests and selftests are made of, is what the checkout has."""
    for folder in ("guest", "qemu-configs", "systemd"):
        program = f"from nicmodel.installation import data_folder; print(data_folder({folder!r}))"
        there = Path(installed.run("python", "-c", program).strip())
        assert installed.bin.parent in there.parents
        files = {file.relative_to(there): file.read_bytes() for file in there.rglob("*") if file.is_file()}
        assert files == {
            file.relative_to(ROOT / folder): file.read_bytes() for file in (ROOT / folder).rglob("*") if file.is_file()
        }
    assert "memory-backend-memfd" in installed.run("nicmodel", "config", "q35")
    assert "nicmodel@.service" in installed.run("nicmodel", "config")
    assert f"ExecStart={installed.bin}/nicmodel serve" in installed.run("nicmodel", "config", "nicmodel@.service")
    assert "ntuple" in installed.run("nicmodel", "selftests", "--list")
    assert "RX-BUF-003" in installed.run("nicmodel", "rules", "RX-BUF-003")


@pytest.fixture
def served(installed: Installed) -> Iterator[tuple[Installed, Path]]:
    path = installed.home / "nic.sock"
    server = subprocess.Popen(
        ["nicmodel", "serve", "--socket", str(path)], cwd=installed.home, env=installed.environment,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with server:
        try:
            assert server.stdout is not None
            assert "ready\n" in iter(server.stdout.readline, "")
            yield installed, path
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=_LIMIT)
    assert server.returncode == 0


def test_a_served_nic_is_found(served: tuple[Installed, Path]) -> None:
    with Client(str(served[1])) as client:
        identity = client.region_read(7, 0, 4)
    assert identity == bytes.fromhex("e01a4200")


def test_the_fixtures_are_there(installed: Installed) -> None:
    """A test of somebody else's, in a folder that has nothing of nicmodel's."""
    (installed.home / "test_mine.py").write_text(
        "from scapy.layers.inet import IP, TCP\n"
        "from scapy.layers.l2 import Ether\n\n\n"
        "def test_one_frame(nic, driver, clock):\n"
        "    driver.open(rx_queues=2)\n"
        "    assert nic.inject(Ether() / IP() / TCP(dport=5201) / (b'x' * 100)).frame\n\n\n"
        "def test_two_nics(link):\n"
        "    one, other = link\n"
        "    for end in link:\n"
        "        end.driver.open()\n\n\n"
        "def test_there_is_a_guest(request):\n"
        "    assert request.config.pluginmanager.has_plugin('nicmodel.testing.plugin')\n"
    )
    said = installed.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py")
    assert "3 passed" in said, said
