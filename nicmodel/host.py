"""The host: NICs of one process, and all that surrounds them.

    host = Host(poller)
    nic = host.add(Gvnic(), open_wire("tap:nic0"), name="nic0")
    host.serve(nic, "/run/nic0.sock")
    host.open_control("/run/nicmodel.sock")
    host.start()
    poller.serve_forever()
    host.close()

``nicmodel serve`` is one, and so is each NIC in the hands of a test (`nicmodel.testing.harness`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from nicmodel.faults.faults import Faults
from nicmodel.nic.nic import Nic
from nicmodel.observe.control_server import ControlServer
from nicmodel.vfio_user.listener import Listener
from nicmodel.vfio_user.poll import EventLoop, Poller
from nicmodel.vfio_user.server import Server
from nicmodel.vfio_user.strand import Strand
from nicmodel.wire.wire import Wire

if TYPE_CHECKING:
    from nicmodel.observe.findings import Checker, Finding
    from nicmodel.observe.ladder import Ladder
    from nicmodel.observe.metrics import MetricsServer
    from nicmodel.recording.recorder import Recorder


N = TypeVar("N", bound=Nic)


class Model(Protocol[N]):
    """A NIC to be made: its personality, and what it offers."""

    def make(self, wire: Wire, poller: EventLoop, *, name: str) -> N:
        """Make it.

        Args:
            wire: where its frames go.
            poller: the event loop, whose clock is also the NIC's.
            name: for logs.
        """

    def faults(self, nic: N) -> Faults:
        """Have faults on demand for it."""

    def ladder(self, nic: N) -> Ladder[Any]:
        """See how far its driver comes."""

    def check(self, nic: N, on_finding: Callable[[Finding], None] | None) -> Checker:
        """Watch its driver keep the contract; `on_finding` is called with each new finding."""


class Host:
    """Puts NICs, wires, servers, faults, checkers, control and metrics together, and takes them apart in the end.

    Add all NICs first; then serve them; then open what looks into them; then start.

    Args:
        poller: the event loop of all of them, which the caller runs, and closes in the end.

    Attributes:
        poller: the same.
        nics: in the order in which they were added.
        faults: of each of them, faults on demand.
        ladders: by the names of the NICs, how far their drivers have come.
        checkers: by the names of the NICs whose drivers are watched.
        recorders: by the names of the NICs that are recorded.
        servers: what clients connect to, in the order of the NICs.
    """

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.nics: list[Nic] = []
        self.faults: list[Faults] = []
        self.ladders: dict[str, Ladder[Any]] = {}
        self.checkers: dict[str, Checker] = {}
        self.recorders: dict[str, Recorder] = {}
        self.servers: list[Server] = []
        self._strands: dict[Hashable, Strand] = {}
        self._open = ExitStack()

    def add(
        self,
        model: Model[N],
        wire: Wire,
        *,
        name: str = "nic",
        joined: Hashable = None,
        check: bool = False,
        on_finding: Callable[[Finding], None] | None = None,
        record: bool = False,
    ) -> N:
        """Make a NIC, which from now on is stopped by `close`.

        Args:
            model: what it is, and what it offers.
            wire: where its frames go; the NIC's from now on.
            name: what it is called; each has its own.
            joined: NICs for which this is equal are on one strand: one that waits for its client keeps nobody waiting
                but those that its wire leads to. None: it is on the event loop itself, and everybody waits.
            check: watch its driver keep the contract (`nicmodel.observe.findings`).
            on_finding: called with each new finding.
            record: note each call into it (`nicmodel.recording`).
        """
        poller: EventLoop = self.poller
        if joined is not None:
            if joined not in self._strands:
                self._strands[joined] = Strand(self.poller)
            poller = self._strands[joined]
        recorder = None
        if record:
            from nicmodel.recording.recorder import Recorder  # who records nothing starts without it

            self.recorders[name] = poller = recorder = Recorder(poller)
        nic = model.make(wire, poller, name=name)
        self._open.callback(nic.stop)
        self.nics.append(nic)
        self.faults.append(model.faults(nic))
        self.ladders[name] = model.ladder(nic)
        if check:
            self.checkers[name] = model.check(nic, on_finding)
        if recorder is not None:  # behind faults of the wire, which make what reaches the NIC
            recorder.watch(nic)
            if check:
                recorder.listen(self.checkers[name].memory)
        return nic

    def serve(self, nic: Nic, place: str | Listener) -> Server:
        """Have clients connect to a NIC, one that was added.

        Args:
            nic: the next in order.
            place: path of a socket, or a listener.

        Raises:
            AddressError: the socket cannot be created.
        """
        server = Server(place, nic, poller=nic.poller)
        self._open.callback(server.close)
        self.servers.append(server)
        return server

    @property
    def served(self) -> list[tuple[Nic, Server]]:
        """Each NIC with its server."""
        return list(zip(self.nics, self.servers, strict=True))

    @cached_property
    def _beside(self) -> EventLoop:
        """The event loop of those who look into all NICs: they have to wait while one of those waits."""
        return Strand(self.poller, behind=self._strands.values()) if self._strands else self.poller

    def open_control(self, place: str | Listener) -> ControlServer:
        """Answer at a control socket: a path, or a listener.

        Raises:
            AddressError: the socket cannot be created.
        """
        control = ControlServer(place, self.served, self._beside, self.faults, self.checkers, self.ladders)
        self._open.callback(control.close)
        return control

    def open_metrics(self, address: tuple[str, int]) -> MetricsServer:
        """Answer scrapes at this host and port; port 0: any that is free.

        Raises:
            OSError: it cannot listen there.
        """
        from nicmodel.observe.metrics import MetricsServer  # who exports nothing starts without HTTP

        metrics = MetricsServer(address, self.served, self._beside)
        self._open.callback(metrics.close)
        return metrics

    def start(self) -> None:
        """Have all NICs begin to take frames from their wires."""
        for nic in self.nics:
            nic.start()

    def close(self) -> None:
        """End everything, the last that was opened first: who looks on, then the servers, then the NICs."""
        self._open.close()
