"""``python -m tests.device.fuzz``: fuzz one target for as long as is wanted."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from pathlib import Path

import click

#: Where the corpus is, unless told otherwise.
_HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nicmodel" / "fuzz"
_NAMES = ["messages", "admin", "rings", "idpf-mailbox", "idpf-rings", "wires", "control", "captures"]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("target", type=click.Choice([*_NAMES, "all"]))
@click.option("--examples", type=click.IntRange(1), help="End after so many examples.")
@click.option(
    "--operations", type=click.IntRange(1), help="End after so many messages, descriptors, frames, commands …"
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="End after this time.  [one, without a limit]")
@click.option("--seed", type=click.IntRange(0), help="Where the choice of examples begins.  [the time]")
@click.option("--corpus", type=click.Path(file_okay=False, path_type=Path), default=_HOME, help="Kept examples.",
              show_default=str(_HOME))  # fmt: skip
@click.option(
    "--boundscheck", is_flag=True, help="Compile the packet path so that it checks every index; it is slower."
)
@click.option(
    "--replay", metavar="EXAMPLE", help="Run one example: a line that a failure has printed, or a file with it."
)
def main(
    target: str, examples: int | None, operations: int | None, minutes: float | None, seed: int | None, corpus: Path,
    boundscheck: bool, replay: str | None,
) -> None:  # fmt: skip
    """Throw wrong input at a part of nicmodel, and hold it to what it promises.

    \b
    messages      vfio-user messages with descriptors, from a client that may be anything
    admin         gVNIC: registers, and commands of the admin queue
    rings         gVNIC: descriptors, frames and doorbells in all four queue formats; every byte of memory is accounted
                  for
    idpf-mailbox  idpf: registers, and messages of the mailbox
    idpf-rings    idpf: descriptors, frames and doorbells, in both scheduling modes; likewise
    wires         bytes and metadata from the far end of each kind of wire, to a NIC of either kind
    control       requests at the control socket and at the metrics endpoint
    captures      capture files

    An example that fails is made as small as possible and printed, and kept in the corpus, from which the next run
    begins. So are examples in which especially much has happened.
    """
    if boundscheck and os.environ.get("NUMBA_BOUNDSCHECK") != "1":
        # Numba reads it as it is imported.
        os.environ["NUMBA_BOUNDSCHECK"] = "1"
        os.environ.setdefault("NUMBA_CACHE_DIR", str(_HOME / "boundscheck"))
        os.execv(sys.executable, [sys.executable, "-m", "tests.device.fuzz", *sys.argv[1:]])
    faulthandler.enable()
    import logging

    from .campaign import Campaign, Example, execute, flat
    from .targets import TARGETS

    # What they warn of, they have every reason to.
    logging.getLogger("nicmodel").propagate = False
    logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
    names = list(TARGETS) if target == "all" else [target]
    if replay is not None:
        text = Path(replay).read_text() if os.path.exists(replay) else replay
        run = execute(TARGETS[names[0]], Example.parse(text))
        print(f"It holds: {dict(run.counts)}")
        return
    if examples is None and operations is None and minutes is None:
        minutes = 1
    seed = int(time.time()) if seed is None else seed
    fine = True
    for name in names:
        left_over = corpus / name / "running.json"
        if left_over.exists():
            print(f"The last run has ended within an example; to see whether that killed it: --replay {left_over}")
        shown = 0.0

        def report(campaign: Campaign) -> None:
            nonlocal shown
            if campaign.seconds - shown >= 5:
                shown = campaign.seconds
                print(_line(campaign), flush=True)

        campaign = Campaign(
            TARGETS[name], corpus, seed, examples, operations, None if minutes is None else minutes * 60, report
        )
        print(f"{name}: seed {seed}, corpus {corpus / name}", flush=True)
        fine &= campaign.run()
        print(_line(campaign))
        print(f"  what happened: {', '.join(sorted(campaign.reached)) or 'nothing that has a name'}")
        memory = campaign.memory
        verdict = {True: "flat", False: "it GROWS", None: "too few rounds to say whether it grows"}[flat(memory)]
        print(
            f"  memory: {memory[0] >> 20} MiB after the first round, {memory[-1] >> 20} MiB after the last: {verdict}"
        )
        fine &= flat(memory) is not False
        if campaign.error is not None:
            print(f"  FAILED: {type(campaign.error).__name__}: {campaign.error}")
            if campaign.failing is not None:
                print(f"  python -m tests.device.fuzz {name} --replay '{campaign.failing.text()}'")
        else:
            held = [
                f"{campaign.counts[name]:,} {name}" for name in ("stray bytes", "unanswered") if name in campaign.counts
            ]
            print(f"  {', '.join(['0 crashes', *held])}")
    sys.exit(0 if fine else 1)


def _line(campaign: object) -> str:
    from .campaign import Campaign

    assert isinstance(campaign, Campaign)
    count = campaign.counts[campaign.target.operations]
    rest = ", ".join(f"{value:,} {name}" for name, value in sorted(campaign.counts.items()))
    rate = count / max(campaign.seconds, 0.001)
    return f"{campaign.seconds:7.1f} s: {rest} ({rate:,.0f} {campaign.target.operations}/s)"


if __name__ == "__main__":
    main()
