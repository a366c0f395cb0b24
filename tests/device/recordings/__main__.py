"""Makes the recordings of stock drivers that `tests/device/test_recordings.py` runs, each in a guest:

    make recordings                                                      all of them
    .venv/bin/python -m tests.device.recordings gve-gqi                  one

A driver is loaded, brought up, moves some packets each way, and is removed. Payload is blanked.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click

from nicmodel.vm.driver_bench import DriverBench
from nicmodel.vm.errors import VmError

HERE = Path(__file__).parent
#: Options of ``nicmodel serve`` for each.
RECORDINGS = {
    "gve-dqo": ("--queues", "2"),
    "gve-gqi": ("--queues", "2", "--profile", "legacy"),
    "idpf": ("--queues", "2", "--device", "idpf"),
}
#: Small packets and large ones, and other rings.
TRAFFIC = """
ping -q -c 5 -i 0.2 -s 56 -W 2 $REMOTE_V4 &&
ping -q -c 3 -i 0.2 -s 4000 -W 2 $REMOTE_V4 &&
ethtool -G $NETIF rx 512 &&
ping -q -c 2 -i 0.2 -s 1400 -W 2 $REMOTE_V4
"""


def record(name: str, folder: Path) -> None:
    """Make one."""
    whole = folder / f"{name}.rec"
    with DriverBench(serve=[*RECORDINGS[name], "--record", str(whole)]) as bench:
        verdict = bench.try_out(None, TRAFFIC)
    if verdict.trouble:
        raise VmError(f"{name}: {'; '.join(verdict.trouble)}")
    blanked = str(HERE / f"{name}.rec")
    subprocess.run([sys.executable, "-m", "nicmodel.cli", "replay", str(whole), "--blank-payload", blanked], check=True)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(RECORDINGS)))
def main(names: tuple[str, ...]) -> None:
    """Record drivers: these, or all."""
    with tempfile.TemporaryDirectory(prefix="nicmodel-") as folder:
        for name in names or RECORDINGS:
            click.echo(name)
            record(name, Path(folder))


if __name__ == "__main__":
    main()
