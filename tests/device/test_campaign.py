"""Campaigns on Dask's workers: those of this machine, of which some are killed, and those of another scheduler."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from nicmodel.vm.campaign import workers
from nicmodel.vm.campaign.plan import Plan
from nicmodel.vm.errors import VmError
from nicmodel.vm.qemu import spawn

RULES = """
command = "rules {which} {form}"
[axes]
which = ["RX", "TX"]
form = ["", "--json"]
"""
#: A server, which does not end by itself, beside what does.
SERVERS = """
command = "{what}"
timeout = 150
[axes]
what = ["campaign {inner} --list", "rules RX", "serve --socket nic.sock"]
[files]
inner = "inner.toml"
"""


def campaign(file: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "nicmodel.cli", "campaign", str(file), *words]


def written(folder: Path, text: str) -> Path:
    (folder / "inner.toml").write_text('command = "rules"\n')
    file = folder / "campaign.toml"
    file.write_text(text)
    return file


def rows(file: Path, what: str) -> list[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(file.with_suffix(".sqlite"))) as database:
        return database.execute(f"SELECT {what} FROM cells ORDER BY command").fetchall()


def test_a_campaign_goes_on_where_it_was(tmp_path: Path) -> None:
    file = written(tmp_path, RULES.replace('"TX"', '"NOSUCH"'))
    page = tmp_path / "page.html"
    run = subprocess.run(
        campaign(file, "--workers", "2", "--html", str(page)), capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 1, run.stderr
    assert "failed: nicmodel rules NOSUCH --json" in run.stdout and "no rule is called NOSUCH" in run.stdout
    assert "2 of 4 are good" in page.read_text()
    before = rows(file, "status, finished")
    assert [status for status, _ in before] == ["failed", "failed", "good", "good"]
    written(tmp_path, RULES)
    run = subprocess.run(campaign(file, "--workers", "1"), capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    assert "2 of 4 cells have a verdict" in run.stdout
    told = re.findall(r"✓ (\d/\d) (which .*): good", run.stdout)
    assert told == [("1/2", "which TX, form "), ("2/2", "which TX, form --json")]
    assert rows(file, "status, finished")[:4] == before


@pytest.mark.parametrize(("workers", "kills", "becomes"), [(2, 1, "good"), (2, 2, "lost"), (1, 1, "good")])
def test_a_worker_that_is_killed(tmp_path: Path, workers: int, kills: int, becomes: str) -> None:
    """*Verify*: its cell is run again, but not for ever; no process is left, and no other cell is lost with it."""
    file = written(tmp_path, SERVERS)
    killed: list[psutil.Process] = []
    with spawn(campaign(file, "--workers", str(workers)), stdout=subprocess.PIPE, text=True) as process:
        here = psutil.Process(process.pid)
        deadline = time.monotonic() + 200
        while len(killed) < kills:
            for server in running(here, deadline):
                with contextlib.suppress(psutil.NoSuchProcess):
                    killed.append(server)
                    worker = server.parent()
                    assert worker is not None
                    worker.kill()
                    psutil.wait_procs([server], 20)
        if becomes == "good":
            for server in running(here, deadline):
                server.terminate()  # by which it ends in order
        out, _ = process.communicate(timeout=200)
    assert process.returncode == (0 if becomes == "good" else 1)
    assert re.search(rf"./3 what serve --socket nic\.sock: {becomes}", out)
    assert [status for (status,) in rows(file, "status")] == ["good", "good", becomes]
    assert not any(server.is_running() for server in killed)


def running(process: psutil.Process, deadline: float) -> list[psutil.Process]:
    """Wait for a server that has a socket: from then on it ends in order when it is told to."""
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error):
            if found := [server for server in servers(process) if Path(server.cwd(), "nic.sock").exists()]:
                return found
        time.sleep(0.1)
    pytest.fail("no cell has a server that runs")


def servers(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "serve" in child.cmdline() and "nicmodel.cli" in child.cmdline():
                found.append(child)
    return found


def test_a_campaign_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    """*Steps*: Ctrl-C while a server runs. *Verify*: what was done is kept, it is said how to go on, nothing runs."""
    file = written(tmp_path, SERVERS)
    with spawn(campaign(file, "--workers", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
               start_new_session=True) as process:  # fmt: skip
        assert process.stdout is not None
        here = psutil.Process(process.pid)
        for _ in range(2):
            assert ": good" in process.stdout.readline()
        while not servers(here):
            time.sleep(0.1)
        family = here.children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=100)
        assert process.returncode == 130
    assert "1 cells are left: the same command goes on with them" in error and "Traceback" not in error
    psutil.wait_procs(family, 30)
    assert not [one for one in family if one.is_running()]
    assert [status for (status,) in rows(file, "status")] == ["good", "good"]


@contextmanager
def scheduler(folder: Path) -> Iterator[str]:
    """Dask's own, on the loopback."""
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
               "--no-dashboard", "--scheduler-file", str(folder / "scheduler.json")]  # fmt: skip
    with spawn(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if found := re.search(r"tcp://127\.0\.0\.1:\d+", line):
                    yield found[0]
                    break
        finally:
            process.kill()


def test_workers_of_another_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """*Steps*: before there is one, without workers, and with one. *Verify*: what is missing is told."""
    monkeypatch.setattr(workers, "_CONNECT", 3)
    monkeypatch.setattr(workers, "_WORKERS", 1)
    plan = Plan.read(written(tmp_path, RULES))
    with pytest.raises(VmError, match=re.escape("the scheduler tcp://127.0.0.1:1 cannot be used")):
        list(workers.run_all(list(plan.cells()), {}, scheduler="tcp://127.0.0.1:1"))
    with scheduler(tmp_path) as address:
        with pytest.raises(VmError, match=r"cannot be used: .*[Ww]orker"):
            list(workers.run_all(list(plan.cells()), {}, scheduler=address))
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--host", "127.0.0.1",
                   "--no-dashboard", "--nthreads", "1", "--local-directory", str(tmp_path)]  # fmt: skip
        with spawn(command, stderr=subprocess.DEVNULL) as process:
            try:
                monkeypatch.undo()
                found = list(workers.run_all(list(plan.cells()), {}, scheduler=address))
            finally:
                process.kill()
    assert [outcome.status for _, outcome in found] == ["good"] * 4
    assert len({outcome.worker for _, outcome in found}) == 1
