"""The guest's shell on the user's terminal."""

import os
import select
import shutil
import signal
import sys
import termios
import tty
from types import FrameType

from nicmodel.vm.channel import Process
from nicmodel.vm.guest import Guest

LEAVE = b"\x1d"  # Ctrl-], as telnet has it


def pass_on(descriptor: int, data: bytes) -> None:
    """Write a guest process's output to the same descriptor here."""
    while data:
        data = data[os.write(descriptor, data) :]


def run(guest: Guest, command: str) -> int:
    """Run a command, its output here as it comes; an exit status for this process."""
    process = guest.start(command, sink=pass_on)
    process.close_input()
    return _exit_status(process)


def interactive(guest: Guest) -> int:
    """A shell in the guest: on the terminal until it ends or Ctrl-] is typed, or with standard input if that is none.

    Returns:
        The shell's exit status, 0 after Ctrl-].
    """
    if not sys.stdin.isatty():
        process = guest.start(["bash"], sink=pass_on)
        process.write(sys.stdin.buffer.read())
        process.close_input()
        return _exit_status(process)

    def size() -> tuple[int, int]:
        columns, rows = shutil.get_terminal_size()
        return rows, columns

    def resized(_signal: int, _frame: FrameType | None) -> None:
        process.resize(*size())

    process = guest.start(["bash", "--login"], terminal=size(), sink=pass_on)
    before = termios.tcgetattr(sys.stdin)
    handler = signal.signal(signal.SIGWINCH, resized)
    try:
        tty.setraw(sys.stdin)
        while process.running:
            if not select.select([sys.stdin], [], [], 0.1)[0]:
                continue
            typed = os.read(sys.stdin.fileno(), 4096)
            if not typed or LEAVE in typed:
                return 0
            process.write(typed)
    finally:
        signal.signal(signal.SIGWINCH, handler)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    return _exit_status(process)


def _exit_status(process: Process) -> int:
    """A process's status as a shell gives it: 128 and the signal's number if a signal ended it."""
    status = process.wait(None).status
    return status if status >= 0 else 128 - status
