"""``python tests/guest/soak_plot.py soak.csv soak.png``: a soak's memory and rates as a picture."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

CURVES = {
    "memory_mib": "server's own memory, MiB",
    "mbit_per_second": "received by all guests, Mbit/s",
    "dropped": "frames dropped since the line before",
}


def draw(log: Path, picture: Path) -> None:
    """Draw a log of `test_soak.py`, one curve above the other, over hours.

    Raises:
        ImportError: there is no matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    hours = [float(row["seconds"]) / 3600 for row in rows]
    figure, axes = plt.subplots(len(CURVES), sharex=True, figsize=(10, 8), layout="constrained")
    for axis, (column, label) in zip(axes, CURVES.items(), strict=True):
        axis.plot(hours, [float(row[column]) for row in rows], color="#0072B2", linewidth=0.8)
        axis.set_title(label, fontsize=10, loc="left")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("hours")
    figure.suptitle(f"{len(rows):,} changes in {hours[-1] if hours else 0:.2f} hours")
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
