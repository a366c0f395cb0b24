"""``nicmodel capture``: frames of a running NIC, into a file for Wireshark."""

from __future__ import annotations

import base64
import contextlib
import os
import select
from collections.abc import Iterator
from typing import Any, BinaryIO

import click

from nicmodel.cli.options import control_option
from nicmodel.client.control import Control
from nicmodel.client.pcapng import PcapngWriter
from nicmodel.packet.frames import MAX_FRAME


@click.command()
@control_option
@click.option("-w", "--write", "output", type=click.File("wb", lazy=False), required=True, metavar="FILE",
              help="The pcapng file; - for the standard output.")  # fmt: skip
@click.option("--nic", metavar="NAME", help="Only this NIC of the server: nic0, nic1, …")
@click.option("--queue", "queues", multiple=True, metavar="QUEUE",
              help="Only frames of these queues: rx0, tx3. Repeat for several.")  # fmt: skip
@click.option("-s", "--snapshot-length", "limit", type=click.IntRange(1, MAX_FRAME), metavar="BYTES",
              help="Keep only the first BYTES of each frame.  [default: all]")  # fmt: skip
@click.option("-c", "--count", type=click.IntRange(1), metavar="N", help="End after N frames.")
def capture(
    path: str, output: BinaryIO, nic: str | None, queues: tuple[str, ...], limit: int | None, count: int | None
) -> None:
    """Write the frames of a NIC to a pcapng file, until Ctrl-C.

    Each queue is an interface, named such as nic0:rx3; what comes to no queue is on the NIC's wire, nic0:wire. Every
    frame is there once, with direction, queue and RSS hash, and a comment: the flow rule or table entry that chose the
    queue, bytes of header and payload, why it was dropped, how it was segmented.

    \b
      nicmodel capture --control /tmp/nic.ctl -w - | wireshark -k -i -

    While nobody captures, the NIC does not spend any time on it.
    """
    with Control(path) as control:
        about, frames = control.capture(queues=queues, limit=limit, nic=nic)
        taken, lost = _write(output, about, frames, limit or 0, count)
    click.echo(f"{taken} frames{f', and {lost} lost: they came faster than they were read' if lost else ''}", err=True)


def _write(
    output: BinaryIO, about: dict[str, Any], frames: Iterator[dict[str, Any]], limit: int, count: int | None
) -> tuple[int, int]:
    """Write until Ctrl-C, the server's end or `count`; how many frames were written and lost."""
    interfaces: dict[str, int] = {}
    taken = written = lost = 0
    try:
        writer = PcapngWriter(_Output(output))
        click.echo("capturing", err=True)
        for frame in frames:
            if "lost" in frame:
                lost += frame["lost"]
                continue
            queue = frame.get("queue")
            name = f"{frame['nic']}:{queue or 'wire'}"
            if name not in interfaces:
                description = f"queue {queue}" if queue else about["wires"][frame["nic"]]
                interfaces[name] = writer.interface(name, description, limit=limit)
            taken += 1  # before it is written: Ctrl-C may come as soon as somebody has read it
            writer.packet(
                interfaces[name],
                base64.b64decode(frame["data"]),
                time=about["epoch"] + frame["time"],
                length=frame["length"],
                outbound=frame["direction"] == "out",
                queue=int(queue[2:]) if queue else None,
                toeplitz=frame.get("hash"),
                comment=describe(frame),
            )
            written = taken
            if taken == count:
                break
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(f"{output.name}: {error.strerror}; {written} frames were written before") from None
    return taken, lost


class _Output:
    """Writes blocks at once: nothing stays behind that would have to wait at the end for a reader who does not read.

    Of a block for which there is no room on the disk nothing is left: the file ends with the one before.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file: BinaryIO = getattr(file, "raw", file)

    def write(self, block: bytes) -> None:
        """Write all of it."""
        done = 0
        try:
            while done < len(block):
                written: int | None = self._file.write(block[done:])
                if written is None:  # somebody has made it non-blocking
                    select.select([], [self._file], [])
                done += written or 0
        except OSError:
            with contextlib.suppress(OSError):  # a pipe cannot take it back
                self._file.seek(-done, os.SEEK_CUR)
                self._file.truncate()
            raise


def describe(frame: dict[str, Any]) -> str:
    """What became of a frame, in words."""
    words = []
    if frame.get("verdict", "delivered") != "delivered":
        words.append(f"dropped: {frame['verdict']}")
    if "rule" in frame:
        words.append(f"rule {frame['rule']}")
    if "table_entry" in frame:
        words.append(f"table entry {frame['table_entry']}")
    if frame.get("header"):
        words.append(f"split: header {frame['header']} + payload {frame['length'] - frame['header']} bytes")
    if "coalesced" in frame:
        words.append("coalesced with the frame before")
    if "mss" in frame:
        words.append(f"segment {frame['segment']} of {frame['mss']} bytes")
    if "gso" in frame:
        words.append(f"to be cut into segments of {frame['gso']} bytes")
    if "checksum" in frame:
        words.append("checksum filled in" if frame["checksum"] == "filled" else "checksum left to the wire")
    return ", ".join(words)
