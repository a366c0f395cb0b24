"""The experiment of the devmem TCP series, reproduced: what was measured, and what follows from it.

The same transfer into an accelerator's memory, two ways. (a) Ordinary TCP: the NIC writes payload to host memory, the
kernel copies it to the program, and the program copies it to the accelerator. (b) devmem TCP: the NIC writes payload to
the accelerator's memory, and no CPU touches it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nicmodel.client.ledger import ROOT_COMPLEX, Entry, Place, total
from nicmodel.client.results import Claim

COPY, DEVMEM = "copy", "devmem"
MODES = {COPY: "TCP, then copy", DEVMEM: "devmem TCP"}

#: Bytes for each byte of payload that are not worth a word: what other traffic of the guest there is.
_NOTHING = 0.001
#: Share of the host's CPU time that makes it busy if others have it. The kernel's work for the wire may be some of it.
_BUSY = 0.2
#: If so many pairs of transfers all say the same, that is no chance: by chance they would once in 16 times.
_ENOUGH = 5


@dataclass(frozen=True)
class Run:
    """One transfer.

    Attributes:
        mode: `COPY` or `DEVMEM`.
        queue: the receive queue of the stream, such as ``rx3``.
        nbytes: of the stream.
        seconds: from the connection until all of it was in the accelerator's memory.
        cpu_seconds: that the guest's CPUs were busy meanwhile, all together, interrupts included.
        to_user: bytes that the guest's kernel copied to the program.
        to_device: bytes that the program copied to the accelerator's memory.
        place: what the accelerator's memory is.
        ledger: the NIC's DMA meanwhile.
        fault: what was wrong with the content; None: nothing.
        others: share of the host's CPU time, 0 to 1, that other programs had meanwhile; None: the host does not tell.
    """

    mode: str
    queue: str
    nbytes: int
    seconds: float
    cpu_seconds: float
    to_user: int
    to_device: int
    place: Place
    ledger: tuple[Entry, ...]
    fault: str | None = None
    others: float | None = None

    @property
    def gbps(self) -> float:
        """Throughput, Gbit/s."""
        return self.nbytes * 8 / self.seconds / 1e9

    @property
    def copied(self) -> int:
        """Bytes copied by a CPU of the guest."""
        return self.to_user + self.to_device

    @property
    def stray_payload(self) -> int:
        """Bytes of the stream that the NIC wrote to host memory."""
        return total(self.ledger, queue=self.queue, purpose="payload", place=Place.RAM)

    @property
    def host_memory(self) -> dict[str, int]:
        """Bytes that were written to host memory or read from it, by what for.

        DMA is the NIC's own account. Copies read and write each byte once; what caches save of that is not seen here.
        """
        dma = [entry for entry in self.ledger if entry.place is Place.RAM]
        return {
            "payload, by the NIC": total(dma, purpose="payload"),
            "read by the kernel's copy": self.to_user,
            "written by the kernel's copy": self.to_user,
            "read by the program's copy": self.to_device,
            "headers and acknowledgements": total(dma, purpose="header") + total(dma, purpose="transmit"),
            "rings": total(dma, group="rings"),
        }

    @property
    def root_complex(self) -> dict[str, int]:
        """Bytes that passed the root complex, by who moved them.

        A CPU that writes to a BAR passes it too. To memory that is a NUMA node it has a coherent link.
        """
        to_bar = self.to_device if self.place in (Place.BAR, Place.PEER) else 0
        return {"the NIC": total(self.ledger, path=ROOT_COMPLEX), "a CPU, to the BAR": to_bar}


@dataclass
class Experiment:
    """What was measured, and under what circumstances.

    Attributes:
        about: the circumstances, for the reader: name and value.
        runs: the transfers, in their order.
    """

    about: dict[str, str]
    runs: list[Run] = field(default_factory=list)

    def of(self, mode: str) -> list[Run]:
        """The runs of one mode."""
        return [run for run in self.runs if run.mode == mode]

    def per_byte(self, mode: str, value: Callable[[Run], float]) -> float:
        """A quantity of one mode's runs, for each byte of payload."""
        runs = self.of(mode)
        return sum(map(value, runs)) / sum(run.nbytes for run in runs)

    def gbps(self, mode: str) -> float:
        """Median throughput, Gbit/s."""
        return statistics.median(run.gbps for run in self.of(mode))

    def _throughput(self) -> Claim:
        """Whether throughput rises: by transfers that followed one another, one each way, so in like circumstances.

        Beside other programs chance decides some of them. Then it is judged only if there are pairs enough, and all of
        them say the same.
        """
        pairs = list(zip(self.of(COPY), self.of(DEVMEM), strict=True))
        ratios = [after.gbps / before.gbps for before, after in pairs]
        risen = sum(ratio > 1 for ratio in ratios)
        slow, fast = self.gbps(COPY), self.gbps(DEVMEM)
        evidence = f"from {slow:.2f} to {fast:.2f} Gbit/s, × {statistics.median(ratios):.2f}"
        evidence += f"; it rose in {risen} of {len(pairs)} pairs of transfers, × {min(ratios):.2f} to {max(ratios):.2f}"
        holds: bool | None = statistics.median(ratios) > 1
        others = max(run.others or 0.0 for run in self.runs)
        if others > _BUSY:
            evidence += f"; other programs had up to {others:.0%} of this host's CPU time"
            if len(pairs) < _ENOUGH or 0 < risen < len(pairs):
                holds = None
        return Claim("Throughput rises.", holds, evidence)

    def claims(self) -> list[Claim]:
        """The claims of the series, and first that both ways did the same work."""
        faults = [f"{run.mode}: {run.fault}" for run in self.runs if run.fault]
        stray = sum(run.stray_payload for run in self.of(DEVMEM))
        before, after = (self.per_byte(mode, lambda run: sum(run.host_memory.values())) for mode in (COPY, DEVMEM))
        rest = self.per_byte(
            DEVMEM, lambda run: run.host_memory["headers and acknowledgements"] + run.host_memory["rings"]
        )
        claims = [
            Claim(
                "The whole stream was in the accelerator's memory after each run, byte by byte.",
                not faults,
                "; ".join(faults) or f"{len(self.runs)} runs, {sum(run.nbytes for run in self.runs):,} bytes checked",
            ),
            Claim(
                "With devmem TCP no payload is in host memory.",
                stray == 0 and not any(run.copied for run in self.of(DEVMEM)),
                f"{stray:,} bytes by DMA, {sum(run.copied for run in self.of(DEVMEM)):,} bytes by copies",
            ),
            Claim(
                "Traffic of host memory falls to headers and rings.",
                after < before and after - rest < _NOTHING,
                f"from {before:.2f} to {after:.3f} bytes for each byte of payload; headers and rings are {rest:.3f}",
            ),
            self._throughput(),
        ]
        if self.runs[0].place is Place.PEER:
            up, down = (self.per_byte(mode, lambda run: sum(run.root_complex.values())) for mode in (COPY, DEVMEM))
            claims.append(
                Claim(
                    "Payload stays at the lowest level of the PCIe tree.",
                    down < up and down - rest < _NOTHING,
                    f"through the root complex from {up:.2f} to {down:.3f} bytes for each byte of payload",
                )
            )
        return claims


def as_json(experiment: Experiment) -> dict[str, Any]:
    """All of it, for programs."""
    return {
        "about": experiment.about,
        "claims": [vars(claim) for claim in experiment.claims()],
        "summary": {
            mode: {quantity.name: quantity.value(experiment, mode) for quantity in QUANTITIES} for mode in MODES
        },
        "runs": [
            {
                "mode": one.mode,
                "bytes": one.nbytes,
                "seconds": one.seconds,
                "gbps": one.gbps,
                "cpu_seconds": one.cpu_seconds,
                "copied": one.copied,
                "host_memory": one.host_memory,
                "root_complex": one.root_complex,
                "fault": one.fault,
                "others": one.others,
                "ledger": [vars(entry) for entry in one.ledger],
            }
            for one in experiment.runs
        ],
    }


@dataclass(frozen=True)
class Quantity:
    """What the two ways are compared by.

    Attributes:
        name: for programs.
        title: for people.
        unit: of the value, which is for each byte of payload, except for the throughput.
        value: of the runs of a mode.
        parts: bytes of a run by what for, if the quantity is their sum.
        varies: whether it is another in each run.
    """

    name: str
    title: str
    unit: str
    value: Callable[[Experiment, str], float]
    parts: Callable[[Run], dict[str, int]] | None = None
    varies: bool = False

    def shares(self, found: Experiment, mode: str) -> dict[str, float]:
        """The parts of a mode's runs, for each byte of payload; none if the quantity has none."""
        if self.parts is None:
            return {}
        books = [self.parts(run) for run in found.of(mode)]
        nbytes = sum(run.nbytes for run in found.of(mode))
        return {part: sum(book[part] for book in books) / nbytes for part in books[0]}


def _sum(name: str, title: str, parts: Callable[[Run], dict[str, int]]) -> Quantity:
    def value(found: Experiment, mode: str) -> float:
        return found.per_byte(mode, lambda run: sum(parts(run).values()))

    return Quantity(name, title, "bytes", value, parts)


QUANTITIES: Sequence[Quantity] = (
    _sum("host_memory_bytes", "Through host memory", lambda run: run.host_memory),
    _sum("root_complex_bytes", "Through the root complex", lambda run: run.root_complex),
    Quantity(
        "copied_bytes",
        "Copied by guest CPUs",
        "bytes",
        lambda found, mode: found.per_byte(mode, lambda run: run.copied),
    ),
    Quantity(
        "cpu_ns",
        "Time of guest CPUs",
        "ns",
        lambda found, mode: 1e9 * found.per_byte(mode, lambda run: run.cpu_seconds),
        varies=True,
    ),
    Quantity("gbps", "Throughput, median", "Gbit/s", lambda found, mode: found.gbps(mode), varies=True),
)
