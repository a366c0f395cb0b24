"""A driver is tried in a guest, several times, and what it does to its device is recorded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from nicmodel.client.behaviour import Run, Watcher, log_lines
from nicmodel.client.bringup import last_steps
from nicmodel.client.control import Control, ControlError
from nicmodel.vm.driver_bench import DriverBench, Part, Verdict
from nicmodel.vm.errors import VmError

#: Seconds that the last events of a try may take to arrive.
_LIMIT = 60.0
#: The part of a try in which traffic is measured.
COMMAND = "command"


def tries(
    bench: DriverBench,
    modules: Mapping[str, bytes] | None,
    command: str | None,
    count: int,
    told: Callable[[int, Verdict], None] = lambda number, verdict: None,
) -> list[Run]:
    """Try a driver, and tell what it does to its device.

    Args:
        bench: Where; its guest stays.
        modules: The driver's; None: the kernel's own.
        command: For the guest's shell, see `DriverBench.try_out`.
        count: How many times.
        told: Called after each try with its number, from 1 on, and what it has shown.

    Raises:
        VmError: The guest does not start, or the server has gone.
    """
    runs = []
    for number in range(1, count + 1):
        bench.prepare()
        watcher = Watcher()
        parts: list[tuple[str, int]] = []

        def ended(part: Part, parts: list[tuple[str, int]] = parts) -> None:
            parts.append((part.name, time.monotonic_ns()))

        with _watched(bench, watcher):
            begun = time.monotonic_ns()  # the NIC's clock, too
            verdict = bench.try_out(modules, command, ended)
        runs.append(watcher.run(parts, begun, COMMAND, _traits(bench, verdict)))
        told(number, verdict)
    return runs


@contextmanager
def _watched(bench: DriverBench, watcher: Watcher) -> Iterator[None]:
    """Give the events of the block to the watcher, to the last one."""
    with ExitStack() as stack:
        control = stack.enter_context(Control(bench.control))
        events = control.trace()
        complete = threading.Event()

        def read() -> None:
            for event in events:
                if "reply" in event:
                    complete.set()
                    return
                watcher.take(event)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        yield
        control.mark()
        if not complete.wait(_LIMIT):
            raise VmError(f"the NIC's server has not told all that happened within {_LIMIT:.0f} s")
        reader.join(_LIMIT)


def _traits(bench: DriverBench, verdict: Verdict) -> dict[str, set[str]]:
    try:
        with Control(bench.control) as control:
            steps = last_steps(control.bringup())
    except ControlError as error:
        raise VmError(str(error)) from None
    complaints = log_lines(verdict.complaints)
    return {
        "outcome": log_lines([f"{part.name}: {part.said}" for part in verdict.parts if not part.good]),
        "contract": {finding["rule"] for finding in verdict.findings},
        "kernel complains": complaints,
        "kernel log": log_lines(verdict.log) - complaints,
        "steps": {step["title"] for step in steps if step["stage"] == "reached"},
    }
