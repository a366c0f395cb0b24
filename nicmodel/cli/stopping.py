"""How a command ends when it is told to: by SIGINT (Ctrl-C), SIGTERM or SIGHUP (the terminal is gone).

Each raises `Stopped` wherever the command is, so that what it has begun is ended in order. Python calls handlers only
between two instructions of its own: a signal that comes just before a system call that waits would be noticed when that
returns, for ever perhaps. So a thread looks after it: as long as the handler has not run, the signal is sent again.

``nicmodel serve`` has an event loop, which takes signals as events instead (`nicmodel.vfio_user.signals`).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time

#: Seconds between two attempts to have the handler run.
_AGAIN = 0.05

_number = 0


class Stopped(KeyboardInterrupt):
    """The command has been told to end. What expects Ctrl-C only takes this for the same."""


def status() -> int:
    """Exit status of a command that was stopped, as a shell has it: 130 after SIGINT, 143 after SIGTERM."""
    return 128 + (_number or signal.SIGINT)


def stop_on_signals() -> None:
    """Have the signals raise `Stopped` in the main thread, which calls this, from now on.

    A SIGHUP that is ignored, because of nohup(1), stays so.
    """
    read_end, write_end = socket.socketpair()
    read_end.setblocking(False)
    write_end.setblocking(False)

    def stop(number: int, frame: object) -> None:
        global _number
        _number = number
        _drain(read_end)
        raise Stopped

    signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)
    numbers = {signal.SIGINT, signal.SIGTERM}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.add(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, stop)
    # It asks a server for a report, and must not end one that is still starting.
    signal.signal(signal.SIGUSR1, lambda *_: None)
    # Both ends live as long as the process.
    threading.Thread(target=_insist, args=(read_end, write_end, frozenset(numbers)), daemon=True).start()


def _insist(read_end: socket.socket, _write_end: socket.socket, numbers: frozenset[int]) -> None:
    """What lies in the socket are the signals whose handlers have not run yet: send them again."""
    main = threading.main_thread().ident
    assert main is not None
    while True:
        select.select([read_end], [], [])
        time.sleep(_AGAIN)
        try:
            waiting = numbers.intersection(read_end.recv(4096, socket.MSG_PEEK))
        except BlockingIOError:
            continue  # it has run
        if waiting:
            signal.pthread_kill(main, min(waiting))
        else:
            _drain(read_end)  # of others, such as a window's change of size


def _drain(read_end: socket.socket) -> None:
    try:
        while read_end.recv(4096):
            pass
    except BlockingIOError:
        pass


def abandon_output() -> None:
    """When a command was stopped while its reader does not read, do not wait for the reader to print the rest."""
    if _number and sys.stdout is not None:
        waiter = select.poll()
        waiter.register(sys.stdout.fileno(), select.POLLOUT)
        if not waiter.poll(0):
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
