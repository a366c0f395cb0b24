"""Rules of the vectors' registers (INT)."""

from __future__ import annotations

from nicmodel.idpf import registers as r
from nicmodel.idpf.device import Nic
from nicmodel.idpf.mailbox import VECTOR
from nicmodel.idpf.registers import DYN_CTL, Register
from nicmodel.observe.checking.vectors import Vectors
from nicmodel.observe.findings import Journal


class Interrupts(Vectors):
    """Looks at writes to vectors' registers, and at vectors that wait to be enabled."""

    def __init__(self, nic: Nic, journal: Journal) -> None:
        super().__init__(nic, journal, "vector")

    def write(self, register: Register, number: int, value: int, allocated: range) -> None:
        """A register of a vector is about to be written; vectors of queues that are `allocated`."""
        vector = VECTOR if register is r.MAILBOX_DYN_CTL else VECTOR + 1 + number
        queue = self.queue_of(vector)
        self._journal.note(queue, register.name, vector=vector, value=value)
        if vector != VECTOR and vector not in allocated:
            self._journal.report(
                "INT-001", f"{register.name} of vector {vector} is written", value=value, allocated=list(allocated)
            )  # fmt: skip
        elif register in (r.ITR0, r.ITR1):
            if value > r.ITR_MASK:
                self._journal.report("INT-004", f"{register.name} of vector {vector} is set to {value:#x}", queue)
        else:
            self._control(queue, vector, value)

    def _control(self, queue: str | None, vector: int, value: int) -> None:
        fields = DYN_CTL.decode(value.to_bytes(DYN_CTL.size, "little"))
        enable = fields["enable"] and not fields["keep_enable"]
        about = {"vector": vector, "control": fields}
        if value & DYN_CTL.reserved:
            self._journal.report("INT-002", f"bits {value & DYN_CTL.reserved:#x} are reserved", queue, **about)
        if enable and fields["write_back_on_itr"]:
            self._journal.report("INT-003", f"vector {vector} is enabled, and polled", queue, **about)
        if fields["software_interrupt"] and not fields["software_itr_enable"]:
            self._journal.report("INT-006", f"vector {vector} is to interrupt, by no interval", queue, **about)
        if enable and vector != VECTOR:
            self.enabled(vector)
        self.polled(vector)
