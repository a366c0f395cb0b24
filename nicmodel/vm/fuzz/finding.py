"""What counts as a finding: what the kernel says, how its guest ends, what the driver does to the contract."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from nicmodel.vm.guest import explain_crash

#: The lines by which the kernel begins to tell what has gone wrong, the worst first where several tell the same.
_BEGINS = (
    re.compile(r"BUG: KASAN: (?P<what>[\w-]+)"),
    re.compile(r"(?P<what>UBSAN: [\w-]+)"),
    re.compile(r"(?P<what>kernel BUG) at"),
    re.compile(r"BUG: (?P<what>[\w ]+)"),
    re.compile(r"Oops: (?P<what>[\w ]+)"),
    re.compile(r"(?P<what>general protection fault)"),
    re.compile(r"(?P<what>DMA-API): .*?: (?P<more>.+?) \["),
    re.compile(r"(?P<what>DMA-API): .*?: (?P<more>.+)"),
    re.compile(r"(?P<what>refcount_t): (?P<more>[\w-]+)"),
    re.compile(r"WARNING: (?P<what>possible [\w ]+|[\w ]*lock[\w ]*|suspicious RCU usage)"),
    re.compile(r"(?P<what>WARNING): .*"),
    re.compile(r"(?P<what>ODEBUG): (?P<more>.+)"),
    re.compile(r"INFO: (?P<what>task) \S+ (?P<more>blocked for more than)"),
    re.compile(r"(?P<what>soft lockup|rcu: INFO: \w+)"),
    re.compile(r"(?P<what>Bad page state|list_(?:add|del) corruption|Kernel panic)"),
    re.compile(r"(?P<what>Unrecoverable platform error)"),
)
_CALL = re.compile(r"(?P<function>[\w.]+)\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[(?P<module>\w+)\])?")
#: It depends on a pointer's bytes, and on an offset in a structure, which of these is said of one that is wrong.
_POINTER = "bad pointer"
_SAME = dict.fromkeys(
    ("kernel NULL pointer dereference", "unable to handle page fault for address", "general protection fault"), _POINTER
)
#: Lines that belong to what has gone wrong, after the first.
_REPORT = 80
#: Characters of a place.
_LONG = 80


@dataclass(frozen=True)
class Sign:
    """By what two findings are known to be the same.

    Attributes:
        what: what has happened: "BUG: KASAN: slab-use-after-free", "lost", "contract".
        where: the driver's function, or whatever stands for the place; "" if nothing does.
    """

    what: str
    where: str

    @property
    def mild(self) -> bool:
        """Whether the guest is of use afterwards."""
        return self.what == "contract" or self.what.startswith(("WARNING", "DMA-API", "UBSAN"))

    def __str__(self) -> str:
        return f"{self.what} in {self.where}" if self.where else self.what


_FAILED = "a reset that fails, and whatever is asked of the driver then"
#: What has been found before (docs/found.md), with what it is called there. A finding of a fault that is known is
#: counted, and neither made small nor written.
KNOWN: dict[Sign, str] = {
    Sign(_POINTER, "gve_handle_miss_completion"): "a miss completion of an AF_XDP packet",
    Sign("refcount_t: underflow", "gve_clean_tx_done_dqo"): "a miss of an XDP frame that is not re-injected",
    Sign("refcount_t: underflow", "gve_tx_stop_ring_dqo"): "the interface goes down while XDP frames are under way",
    Sign(_POINTER, "gve_rx_was_added_to_block"): _FAILED,
    Sign(_POINTER, "gve_set_coalesce"): _FAILED,
    Sign(_POINTER, "gve_get_rxfh"): _FAILED,
    Sign(_POINTER, "gve_tx_add_to_block"): _FAILED,
    Sign("WARNING", "gve_alloc_buffer"): "buffers that do not come back",
    Sign(_POINTER, "gve_rx_post_buffers_dqo"): "doorbells are rung where the device says",
    Sign(_POINTER, "gve_tx_alloc_rings_dqo"): "rings of no entries are believed",
    Sign("WARNING", "gve_adminq_query_flow_rules"): "a pool that a failed reset has freed",
    Sign(_POINTER, "idpf_xdpsqs_get"): "idpf: an XDP program with more queues than CPUs",
    Sign(_POINTER, "idpf_rx_splitq_clean"): "idpf: what a completion says is believed",
    Sign(_POINTER, "idpf_xskrq_poll"): "idpf: what a completion says is believed",
    Sign("contract", "DBL-001"): "idpf: a tail is written behind the end of its queue",
    Sign("contract", "DBL-003"): "idpf: a tail is written behind the end of its queue",
    Sign("contract", "INT-004"): "interrupts of queues that do not exist",
    Sign("contract", "REG-008"): "the admin queue's doorbell is rung when a reset has just taken the queue away",
}


def signs(lines: Sequence[str], modules: Collection[str]) -> Iterable[tuple[Sign, list[str]]]:
    """What a kernel's log tells of, each with the lines that are about it.

    Args:
        lines: of the log, in order.
        modules: names of the driver's modules.
    """
    at = 0
    while at < len(lines):
        sign, end = _sign(lines, at, modules)
        if sign is not None:
            yield sign, list(lines[at:end])
        at = end


def _sign(lines: Sequence[str], at: int, modules: Collection[str]) -> tuple[Sign | None, int]:
    for pattern in _BEGINS:
        if not (found := pattern.search(lines[at])):
            continue
        end = next(
            (number + 1 for number in range(at, min(at + _REPORT, len(lines))) if "end trace" in lines[number]
             or "end Kernel panic" in lines[number]),
            min(at + _REPORT, len(lines)),
        )  # fmt: skip
        what = found["what"].strip()
        what = _SAME.get(what, what)
        if "more" in found.groupdict() and found["more"]:
            what = f"{what}: {found['more'][:_LONG]}"
        return Sign(what, _where(lines[at:end], modules)), end
    return None, at + 1


def _where(lines: Sequence[str], modules: Collection[str]) -> str:
    """The first of the driver's functions in a call trace, else the first function, which may have no name."""
    calls = [call for line in lines if "?" not in line for call in _CALL.finditer(line)]
    ours = next((call["function"] for call in calls if call["module"] in modules), "")
    return (ours or next((call["function"] for call in calls), "")).partition(".")[0]


def emulators_fault(text: str) -> bool:
    """Whether a crash is QEMU's doing (`nicmodel.vm.guest.explain_crash`)."""
    return bool(explain_crash(text.encode()))
