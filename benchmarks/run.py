"""All benchmarks, one after the other, and then the tables in the documentation: what ``make bench`` does.

    python benchmarks/run.py
    python benchmarks/run.py --only guest_tap --only devmem

It takes twenty minutes. Have the machine to yourself: whatever else runs there is in the figures. In the end it says
what is slower than in the last run on this machine, by more than the noise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click
from history import read, show_changes
from report import FOLDER, output_option

#: In this order: those without a guest first.
BENCHMARKS = ("packet_path", "growth", "instructions", "small", "guest_tap", "devmem", "guest_to_guest")
#: Load of a machine that has something else to do.
BUSY = 0.5


@click.command()
@click.option("--only", type=click.Choice(BENCHMARKS), multiple=True, help="Only this one; again and again.")
@output_option
def main(only: tuple[str, ...], output: Path) -> None:
    """Run them all; one that fails does not keep the others from running."""
    chosen = only or BENCHMARKS
    if (load := os.getloadavg()[0]) > BUSY:
        click.secho(f"the machine is busy (load {load:.1f}): the figures will show it", fg="yellow", err=True)
    began = time.monotonic()
    failed = []
    for number, name in enumerate(chosen, 1):
        passed = time.monotonic() - began
        click.secho(f"[{number}/{len(chosen)}] {name} (after {passed / 60:.1f} min)", bold=True, err=True)
        if subprocess.run([sys.executable, FOLDER / f"{name}.py", "--output", output]).returncode:
            failed.append(name)
    if output == FOLDER:
        subprocess.run([sys.executable, FOLDER / "summary.py"], check=True)
    click.secho(f"{len(chosen)} benchmarks in {(time.monotonic() - began) / 60:.1f} min", bold=True, err=True)
    if measured := [name for name in chosen if name not in failed]:
        show_changes(read(output / "history.jsonl"), measured)
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
