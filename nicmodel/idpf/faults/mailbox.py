"""Faults of the mailbox: any result for any message, replies that are late, lost, too long, never asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nicmodel.faults.detour import overwritten
from nicmodel.faults.fault import Injection, Late
from nicmodel.idpf import registers as r
from nicmodel.idpf.device import Nic
from nicmodel.idpf.faults.kinds import (
    MailboxAnswer,
    MailboxError,
    MailboxFault,
    MailboxLate,
    MailboxLength,
    MailboxLost,
    MailboxStatus,
    MailboxUnasked,
)
from nicmodel.idpf.mailbox import Reply
from nicmodel.idpf.registers import QueueLength
from nicmodel.idpf.virtchnl import Op, Result

_NAMES = {int(op): op.name for op in Op}
#: A cookie that Linux and the driver in Python do not use before others.
_NEVER_USED = 0xFEFE


class MailboxFaults:
    """Stands behind a NIC's mailbox while there are such faults."""

    kinds = (MailboxStatus, MailboxLate, MailboxLost, MailboxLength, MailboxAnswer, MailboxUnasked, MailboxError)

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._active: Sequence[Injection] = ()
        self._late = Late(nic)

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        self._active = active
        mailbox = self._nic.mailbox
        mailbox.gate = self._ask if active else None
        mailbox.detour = self._post if active else None
        errors = 0
        for injection in active:
            if isinstance(injection.fault, MailboxError):
                errors |= QueueLength[injection.fault.bit]
                if not injection.hits:
                    injection.strike()
        self._nic.registers.errors = dict.fromkeys((r.ATQ_LEN, r.ARQ_LEN), errors)

    def _about(self, number: int) -> list[tuple[Injection, MailboxFault]]:
        """The faults that are about a message."""
        name = _NAMES.get(number)
        return [
            (one, one.fault)
            for one in self._active
            if isinstance(one.fault, MailboxFault) and one.fault.message in (None, name)
        ]

    def _ask(self, number: int) -> Result | None:
        for injection, fault in self._about(number):
            if isinstance(fault, MailboxStatus) and injection.hit(message=_called(number), status=fault.status):
                return Result[fault.status]
        return None

    def _post(self, reply: Reply) -> None:
        """A reply, or an event, is to be given to the driver."""
        about = {"message": _called(reply.number)}
        for injection, fault in self._about(reply.number):
            if isinstance(fault, MailboxLost) and injection.hit(**about):
                return
            if isinstance(fault, MailboxLate):
                # The last word about the link must stay the last.
                if (reply.number == Op.EVENT and fault.message is None) or not injection.hit(
                    **about, delay=fault.delay
                ):
                    continue
                life = self._nic.lives["device"]
                if self._late.call(fault.delay, partial(self._give_late, life, reply)):
                    return
            elif isinstance(fault, MailboxLength) and injection.hit(**about, what=fault.what):
                payload = reply.payload
                changed = {"short": payload[: len(payload) // 2], "long": payload + b"\xff" * len(payload), "none": b""}
                reply = reply._replace(payload=changed[fault.what])
            elif isinstance(fault, MailboxAnswer):
                payload = overwritten(reply.payload, fault.at, fault.size, fault.value, "little")
                if payload != reply.payload and injection.hit(**about, at=fault.at):
                    reply = reply._replace(payload=payload)
            elif isinstance(fault, MailboxUnasked) and injection.hit(**about, number=fault.number):
                self._nic.mailbox.give(Reply(fault.number, Result.OK, _NEVER_USED, bytes(16)))
        self._nic.mailbox.give(reply)

    def _give_late(self, life: int, reply: Reply) -> None:
        if self._nic.lives["device"] == life:
            self._nic.mailbox.give(reply)
            self._nic.mailbox.deliver()


def _called(number: int) -> str:
    return _NAMES.get(number, str(number))
