"""Makes the recordings of stock drivers that `tests/device/test_recordings.py` runs, each in a guest:

    make record                                                          all of them
    .venv/bin/python -m tests.device.recordings gve-gqi                  one

A driver is loaded, brought up, moves some packets each way, and is removed. Payload is blanked. It takes a tap, so a
host that has namespaces.
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
    "gve-dqo-qpl": ("--queues", "2", "--profile", "dqo-qpl"),
    "gve-gqi": ("--queues", "2", "--profile", "legacy"),
    "idpf": ("--queues", "2", "--device", "idpf"),
}
#: Small packets and large ones, segments that are cut and merged, what ethtool asks, other rings. Bash has /dev/tcp.
TRAFFIC = """
set -e
ping -q -c 3 -i 0.2 -s 56 -W 2 $REMOTE_V4
ping -q -c 2 -i 0.2 -s 4000 -W 2 $REMOTE_V4
exec 3<>/dev/tcp/$REMOTE_V4/7
head -c 30000 /dev/zero >&3
head -c 30000 <&3 | wc -c
exec 3>&-
head -c 3000 /dev/zero >/dev/udp/$REMOTE_V4/9
ethtool $NETIF
ethtool -S $NETIF >/dev/null
ethtool -G $NETIF rx 512
ping -q -c 2 -i 0.2 -s 1400 -W 2 $REMOTE_V4
"""
#: At the other end: all that comes goes back, once.
ECHO = """
import socket
with socket.create_server(("", 7)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    while data := connection.recv(65536):
        connection.sendall(data)
"""


def record(name: str, folder: Path) -> None:
    """Make one."""
    whole = folder / f"{name}.rec"
    with DriverBench(serve=[*RECORDINGS[name], "--record", str(whole)]) as bench:
        bench.prepare()
        command = [*bench.prefix, sys.executable, "-c", ECHO]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as echo:
            try:
                assert echo.stdout is not None and echo.stdout.readline() == b"ready\n"
                verdict = bench.try_out(None, TRAFFIC)
            finally:
                echo.kill()
    if verdict.trouble:
        raise VmError(f"{name}: {'; '.join(verdict.trouble)}\n{[part.output for part in verdict.parts]}")
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
