"""``nicmodel replay``: a recording, run again."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import click

from nicmodel.cli.options import BROKEN
from nicmodel.cli.recordings import load
from nicmodel.cli.tables import wrapped
from nicmodel.client.text import escaped, lines, printable, value_text
from nicmodel.host import Model
from nicmodel.recording.blank import blanked, remade
from nicmodel.recording.call import Call, RecordingError
from nicmodel.recording.compare import BEFORE, MOST_CHANGES, Difference, Outcome, explain, run
from nicmodel.recording.file import Recording, write
from nicmodel.recording.minimise import Minimiser, effects_of

_FILE = click.Path(path_type=Path, dir_okay=False)
_TOLD_TRIES = 25


@click.command()
@click.argument("file", type=_FILE, metavar="FILE")
@click.option("--before", default=BEFORE, show_default=True, type=click.IntRange(0, 10_000), metavar="N",
              help="How many events of the trace before a difference are shown.")  # fmt: skip
@click.option("--check", is_flag=True,
              help="Check that the driver keeps the contract (`nicmodel rules`). That wants a recording that was made "
                   "with --check, too.")  # fmt: skip
@click.option("--minimise", type=_FILE, metavar="OUT",
              help="Write a smaller recording, in which the same exception, the same difference, or else the same "
                   "broken rule remains.")  # fmt: skip
@click.option("--tries", default=2000, show_default=True, type=click.IntRange(1), metavar="N",
              help="How many smaller ones are tried at most.")  # fmt: skip
@click.option("--seconds", default=300.0, show_default=True, type=click.FloatRange(0.1, 86400), metavar="S",
              help="How long that may take.")  # fmt: skip
@click.option(
    "--blank-payload",
    type=_FILE,
    metavar="OUT",
    help="Write a recording that can be given to others: payload of frames is zeros. Addresses stay.",
)
@click.option("--again", type=_FILE, metavar="OUT",
              help="Write a recording of the same calls with what the NIC does now.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print what is found as JSON.")
def replay(
    file: Path, before: int, check: bool, minimise: Path | None, tries: int, seconds: float,
    blank_payload: Path | None, again: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Run a recording again, and tell what the NIC does otherwise.

    `nicmodel serve --record FILE` makes recordings. It takes no guest to run one: messages, frames, timers and what was
    read of guest memory come from there, and time as well, so a run is the same each time. What the NIC answers,
    writes, sends and raises is compared with what it did then; the first difference is told in the words of `nicmodel
    trace`, with what went before it.

    The exit status is 0 if there is no difference, 3 if there is one, an exception in the NIC, or a broken rule, and 1
    if the recording cannot be used.

    \b
      nicmodel replay nic.rec
      nicmodel replay nic.rec --minimise small.rec
      nicmodel replay nic.rec --blank-payload shared.rec
    """
    recording, model = load(file)
    logging.disable()  # what fails is told below
    try:
        outcome = run(recording, model, check=check, keep=again is not None)
        if outcome.difference is not None:
            explain(recording, model, outcome.difference, before=before)
        if as_json:
            click.echo(json.dumps(_as_dict(recording, outcome), indent=1))
        else:
            _show(recording, outcome, check)
        if minimise is not None:
            _minimise(recording, model, outcome, minimise, tries, seconds)
        if blank_payload is not None:
            _write(blank_payload, blanked(recording, model))
    except RecordingError as error:
        raise click.ClickException(f"{file}: {error}") from None
    if again is not None:
        _write(again, remade(recording, outcome.made))
    elif outcome.difference is not None or outcome.failures or outcome.findings:
        raise click.exceptions.Exit(BROKEN)


def _write(path: Path, recording: Recording) -> None:
    size = write(path, recording)
    click.echo(f"{printable(str(path))}: {len(recording.calls):,} calls, {size:,} bytes", err=True)


def _minimise(
    recording: Recording, model: Model[Any], outcome: Outcome, path: Path, tries: int, seconds: float
) -> None:  # fmt: skip
    effect = next(effects_of(outcome), None)
    if effect is None:
        raise click.ClickException("there is nothing to be found in it that a smaller one could keep")

    def tell(done: int, calls: int) -> None:
        if done % _TOLD_TRIES == 0:
            click.echo(f"  {done:,} tries: {calls:,} calls", err=True)

    click.echo(wrapped(printable(f"making it smaller, so that {effect} remains")), err=True)
    minimiser = Minimiser(recording, model, effect, tries=tries, seconds=seconds, tell=tell)
    smaller = minimiser.run()
    if not minimiser.in_time:
        click.echo("  that was all the tries, or all the time, that there is", err=True)
    _write(path, smaller)


# What is printed.


def _show(recording: Recording, outcome: Outcome, check: bool) -> None:
    header, calls = recording.header, recording.calls
    seconds = (calls[-1].time - header.time) / 1e9 if calls else 0.0
    _say(
        f"{header.nic}: {header.device}, recorded by nicmodel {header.version}, {len(calls):,} calls in {seconds:.3f} s"
    )
    if recording.missing:
        _say(f"The recording is not whole: {recording.missing}.")
    if check and not header.checked:
        _say("It was made without --check: what the checker wants to look at may be missing, and rules seem broken.")
    for number, reason in outcome.failures:
        _say(f"exception in call {number}: {reason}")
    for _, finding in outcome.findings:
        click.echo(wrapped(str(finding)))
    if outcome.difference is None:
        _say("no difference")
        return
    _show_difference(recording, outcome.difference)
    if outcome.faults:
        _say(f"Faults had struck, which a replay is without: {', '.join(sorted(outcome.faults))}.")
    if outcome.unknown:
        _say(f"The NIC has read memory of which the recording does not say what was there, {outcome.unknown} times.")


def _show_difference(recording: Recording, difference: Difference) -> None:
    start, call = recording.header.time, difference.recorded
    for event in difference.before:
        for line in lines(event, start):
            click.echo(wrapped(line))
    _say(f"the first difference, at {(call.time - start) / 1e9:.6f} s, in call {difference.number}: {_named(call)}")
    for change in difference.changes[:MOST_CHANGES]:
        name = change.what.rsplit(".", 1)[-1]
        _say(f"  {change.what}: recorded {value_text(name, change.recorded)}, now {value_text(name, change.now)}")
    if len(difference.changes) > MOST_CHANGES:
        _say(f"  … and {len(difference.changes) - MOST_CHANGES} more")


def _named(call: Call) -> str:
    """A call, as a person has it: what was read or written by number, of frames only how many."""
    match call.name, call.arguments:
        case ("region_read", [region, offset, count]):
            return f"region_read of region {region} at {offset:#x}, {count} bytes"
        case ("region_write", [region, offset, data]):
            return f"region_write to region {region} at {offset:#x}: {data[:32]}"
        case ("receive" | "inject" | "send", [_, frames]):
            return f"{call.name} of {len(frames)} frame{'s' * (len(frames) != 1)}"
    return call.name


def _say(line: str) -> None:
    click.echo(wrapped(printable(line)))


def _as_dict(recording: Recording, outcome: Outcome) -> dict[str, Any]:
    found, difference = None, outcome.difference
    if difference is not None:
        found = {
            "call": difference.number,
            "name": difference.recorded.name,
            "time": difference.recorded.time - recording.header.time,
            "changes": [vars(one) for one in difference.changes],
            "before": difference.before,
        }
    told: dict[str, Any] = escaped(
        {
            "calls": len(recording.calls),
            "missing": recording.missing,
            "difference": found,
            "exceptions": [{"call": number, "reason": reason} for number, reason in outcome.failures],
            "findings": [{"call": number, **finding.as_dict()} for number, finding in outcome.findings],
            "unknown_reads": outcome.unknown,
            "faults": sorted(outcome.faults),
        }
    )
    return told
