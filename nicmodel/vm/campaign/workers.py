"""All cells of a campaign on Dask's workers: some of this machine, or those of any other cluster."""

from __future__ import annotations

import contextlib
import logging
import queue
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from nicmodel.vm.campaign.cell import Outcome, run
from nicmodel.vm.campaign.plan import Cell, File
from nicmodel.vm.errors import VmError
from nicmodel.vm.resources import available_memory, processors

if TYPE_CHECKING:
    from distributed import Client, Future

#: Seconds for a scheduler to answer, and for it to have a worker.
_CONNECT, _WORKERS = 15, 60
#: For a worker of this machine: Ctrl-C is for the campaign, which then ends its workers.
_PRELOAD = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
#: Seconds without any worker after which a campaign ends.
_ALONE = 300
_DESERTED = f"there has been no worker for {_ALONE} s: the campaign ends, run it again"
#: Seconds for an outcome to come from the worker that has it.
_FETCH = 60
#: Cells that are with the scheduler, for each worker.
_AHEAD = 3


def default_workers() -> int:
    """How many this machine should have: a guest has two processors, and up to 3 GiB with its server."""
    return max(1, min(processors() // 2, available_memory() // (3 << 30)))


def run_all(
    cells: Sequence[Cell], files: Mapping[str, File], *, workers: int = 1, scheduler: str | None = None
) -> Iterator[tuple[Cell, Outcome]]:
    """Run cells, and tell of each as it ends, in the order in which they do.

    Args:
        cells: To be run.
        files: What comes with each.
        workers: How many processes of this machine run them.
        scheduler: Address of a cluster's, such as ``tcp://10.0.0.1:8786``, whose workers run them instead.

    Raises:
        VmError: Dask is not there, the scheduler does not answer, or has no workers.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise VmError("campaigns run on Dask: pip install 'nicmodel[campaign]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what becomes of workers is told by their cells
    settings = {
        "distributed.scheduler.allowed-failures": 0,  # `_Run` has its own way
        "distributed.comm.timeouts.connect": _CONNECT,
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        if scheduler is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nicmodel-campaign-"))
            scheduler = stack.enter_context(
                LocalCluster(
                    n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None,
                    memory_limit=0, local_directory=folder, silence_logs=logging.CRITICAL, preload=_PRELOAD,
                )
            )  # fmt: skip
        try:
            client = stack.enter_context(Client(scheduler, timeout=_CONNECT, set_as_default=False))
            client.wait_for_workers(1, timeout=_WORKERS)
        except (OSError, TimeoutError, ValueError) as error:
            raise VmError(f"the scheduler {scheduler} cannot be used: {str(error) or 'it does not answer'}") from None
        yield from _Run(client, cells, files).outcomes()


class _Run:
    """Cells under way: as many as keep the workers busy, so that an end is quick and a scheduler's memory small.

    When a worker dies, Dask gives up all cells that were with it, also those that had not begun, and files that only it
    had. So files are handed out again, and each of these cells is run once more in the end, with nothing else under
    way: one that loses its worker then is what kills it.
    """

    def __init__(self, client: Client, cells: Sequence[Cell], files: Mapping[str, File]) -> None:
        self._client = client
        self._waiting = list(reversed(cells))
        self._suspects: list[Cell] = []
        self._alone = False  # only suspects are left
        self._files = files
        self._handed_out = self._hand_out()
        self._under_way: dict[Future, Cell] = {}
        self._ended: queue.Queue[Future] = queue.Queue()

    def outcomes(self) -> Iterator[tuple[Cell, Outcome]]:
        try:
            while self._fill():
                future = self._next()
                cell, outcome = self._under_way.pop(future), _outcome(future)
                if outcome.status == "lost":
                    self._client.cancel([future], force=True)  # the scheduler may have begun it anew
                    self._handed_out = self._hand_out()
                if outcome.status == "lost" and not self._alone:
                    self._suspects.append(cell)
                else:
                    yield cell, outcome
        finally:
            with contextlib.suppress(Exception):  # a scheduler that has gone
                self._client.cancel(list(self._under_way), force=True)

    def _hand_out(self) -> Any:
        """Have the workers have the files."""
        if not self._files:
            return {}
        try:
            return self._client.scatter(dict(self._files), broadcast=True, timeout=_ALONE)
        except TimeoutError:
            raise VmError(_DESERTED) from None

    def _fill(self) -> bool:
        """Hand over what there is room for; whether anything is under way."""
        if not self._waiting and not self._under_way and self._suspects:
            self._waiting, self._suspects = list(reversed(self._suspects)), []
            self._alone = True
        room = 1 if self._alone else _AHEAD * max(1, len(self._threads()))
        while self._waiting and len(self._under_way) < room:
            cell = self._waiting.pop()
            future = self._client.submit(run, cell, self._handed_out, pure=False)
            self._under_way[future] = cell
            future.add_done_callback(self._ended.put)
        return bool(self._under_way)

    def _next(self) -> Future:
        """The next that ends; a campaign whose workers are all gone does not wait for ever."""
        alone = time.monotonic()
        while True:
            try:
                return self._ended.get(timeout=5)
            except queue.Empty:
                if self._threads():
                    alone = time.monotonic()
                elif time.monotonic() - alone > _ALONE:
                    raise VmError(_DESERTED) from None

    def _threads(self) -> Mapping[str, int]:
        """Of each worker."""
        found: Mapping[str, int] = self._client.nthreads()
        return found


def _outcome(future: Future) -> Outcome:
    """Of a cell that has ended, or whose worker has."""
    if future.status == "finished":
        try:
            outcome: Outcome = future.result(timeout=_FETCH)
            return outcome
        except (CancelledError, TimeoutError):
            return Outcome("lost", output="its worker has died before its outcome was fetched")
    if future.status == "cancelled":
        return Outcome("lost", output="the scheduler has given it up")
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        return Outcome("lost", output="its worker has died, and again when nothing else was under way")
    return Outcome("failed", output=f"it could not be run: {type(error).__name__}: {error}")
