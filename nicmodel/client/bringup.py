"""How far a driver has come, as a person reads it in a terminal (`nicmodel.observe.ladder.Ladder.report`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nicmodel.client.text import escaped

#: From this width on what the device has of a step has a column of its own; below, a line below the step.
_WIDE = 80
#: What a step's stage is called: of the way to the first packets, and of a feature.
_STAGES = {"reached": "reached", "here": "> HERE", "skipped": "skipped", "missing": "-"}
_FEATURE = {"reached": "used", "missing": "-"}


def show(console: Console, report: Mapping[str, Any], number: int | None = None) -> None:
    """Print how far a driver has come, and in a line each those before it.

    Args:
        console: where to print.
        report: what `nicmodel.client.control.Control.bringup` returns.
        number: which life; None: the newest.

    Raises:
        ValueError: there is no such life, or it is forgotten.
    """
    report = escaped(report)
    lives = {life["number"]: life for life in report["lives"]}
    if number is None:
        number = report["lives"][0]["number"]
    if number not in lives:
        there = ", ".join(map(str, lives))
        raise ValueError(f"life {number} is not remembered; there is {there}")
    life, now = lives[number], report["time"]
    way, features = split(life)
    console.print(Text(headline(report, life, now), style="bold"))
    title = "in the end" if life["ended"] else "now"
    console.print(_table(console, way, ("step", title), _STAGES))
    console.print()
    if features:
        console.print(_table(console, features, ("feature", title), _FEATURE))
        console.print()
    for paragraph in (*verdict(life), *_problems(life)):
        console.print(Text(paragraph))
    for other in report["lives"]:
        if other is not life:
            console.print(Text(_line(other, now)))


def split(life: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The steps of a life: those on the way to the first packets, and features."""
    steps: Sequence[dict[str, Any]] = life["steps"]
    return [step for step in steps if step["need"] != "feature"], [step for step in steps if step["need"] == "feature"]


def last_steps(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps of the newest life in which anything was done, which may have ended; empty: there is none."""
    return next((life["steps"] for life in report["lives"] if life["began"] is not None), [])


def headline(report: Mapping[str, Any], life: Mapping[str, Any], now: int) -> str:
    """Which NIC, which life, whose."""
    who = ", ".join(filter(None, (life["driver"], life["system"], life["queue_format"])))
    client = "" if life["ended"] else f", client {report['client']}" if report["client"] else ", no client"
    if life["began"] is None:
        when = "no register written yet"
    elif life["ended"] is None:
        when = f"at work for {duration(now - life['began'])}"
    else:
        when = f"{life['ended']['how']} {duration(now - life['ended']['time'])} ago"
    return f"{report['nic']}{client}, driver's life {life['number']}{who and f' ({who})'}: {when}"


def verdict(life: Mapping[str, Any]) -> Iterator[str]:
    """Where the driver stands, what the device waits for, what a working driver does: a paragraph each."""
    way, features = split(life)
    ended = life["ended"] is not None
    done = sorted((step for step in way if step["order"] is not None), key=lambda step: int(step["order"]))
    here = next((step for step in way if step["stage"] == "here"), None)
    if here is None:
        used = sum(step["stage"] == "reached" for step in features)
        without = [step["title"] for step in way if step["stage"] == "skipped"]
        went_on = f", going on without {len(without)} ({', '.join(without)})" if without else ""
        counted = f"; {used} of {len(features)} features were used" if features else ""
        yield f"The driver {'took' if ended else 'has taken'} every step{went_on}{counted}."
        return
    last = f", the last: {done[-1]['title']}" if done else ""
    yield (
        f"The driver {'stood' if ended else 'stands'} at: {here['title']}. It {'had' if ended else 'has'} done "
        f"{len(done)} of {len(way)} steps{last}. The device {'waited' if ended else 'waits'} for {here['waits']}."
    )
    if here["need"] == "usual":
        yield "It may go on without this step, as one that polls does without interrupts; packets will show."
    yield f"A working driver {here['does']}: {here['example']}"
    device = f"--device {life['device']} " if "device" in life else ""
    rules = f"; nicmodel rules {device}{' '.join(here['rules'])}" if here["rules"] else ""
    yield f"See {here['datasheet']}{rules}"


def news(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Iterator[str]:
    """What has changed in the newest life since an earlier report, a line each.

    Args:
        before: the earlier report; None: all is new.
        after: the later one.
    """
    after = escaped(after)
    life = after["lives"][0]
    old = before["lives"][0] if before is not None else None
    same = old is not None and old["number"] == life["number"]
    known = {step["name"] for step in old["steps"] if step["stage"] == "reached"} if same and old is not None else set()
    if not same:
        yield headline(after, life, after["time"])
    reached = [step for step in life["steps"] if step["stage"] == "reached" and step["name"] not in known]
    for step in sorted(reached, key=lambda step: int(step["order"])):
        now = f": {step['now']}" if step["now"] else ""
        yield f"{when(step):>12}  {step['title']}{now}"
    new_problems = [one for one in life["problems"] if not (same and old is not None and one in old["problems"])]
    yield from (f"{'':>12}  ! {problem}" for problem in new_problems)
    if life["ended"] and not (same and old is not None and old["ended"]):
        yield f"{'':>12}  {life['ended']['how']}"
    if life["stands"] and (reached or not same):
        here = next(step for step in life["steps"] if step["name"] == life["stands"])
        yield f"{'':>12}  waits for {here['waits']}"


def when(step: Mapping[str, Any]) -> str:
    """When a step was reached, counted from the driver's first write to a register."""
    if step["order"] is None:
        return ""
    if step["after_ns"] is None:
        return "before"
    return f"{'<= ' if step['sampled'] else ''}{duration(step['after_ns'])}"


def duration(ns: int) -> str:
    """A time with a unit that suits it."""
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000)):
        if ns >= size:
            return f"{ns / size:.1f} {unit}"
    return f"{ns / 1000:.0f} us"


def _table(
    console: Console, steps: Sequence[Mapping[str, Any]], titles: tuple[str, str], stages: Mapping[str, str]
) -> Table:
    wide = console.width >= _WIDE
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column(titles[0], overflow="fold")
    table.add_column("after", justify="right", no_wrap=True)
    if wide:
        table.add_column(titles[1], overflow="fold")
    for step in steps:
        now = step["now"] if step["stage"] in ("reached", "here") else ""
        name = step["title"] if wide or not now else f"{step['title']}\n  {now}"
        table.add_row(stages[step["stage"]], name, when(step), *([now] if wide else []))
    return table


def _problems(life: Mapping[str, Any]) -> Iterator[str]:
    if life["problems"]:
        yield "What the device has met:"
        yield from (f"- {problem}" for problem in life["problems"])


def _line(life: Mapping[str, Any], now: int) -> str:
    way, _ = split(life)
    done = sum(step["stage"] == "reached" for step in way)
    here = next((step for step in way if step["stage"] == "here"), None)
    stood = f"stood at: {here['title']}" if here else "took every step"
    ended = life["ended"]
    end = f"; {ended['how']} {duration(now - ended['time'])} ago" if ended else ""
    return f"Life {life['number']} did {done} of {len(way)} steps and {stood}{end} (--life {life['number']})"
