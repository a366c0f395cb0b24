"""Faults of the admin queue: any status for any command, late answers, none, a malformed description."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nicmodel.faults.detour import overwritten
from nicmodel.faults.fault import Injection
from nicmodel.gvnic.admin import WAIT
from nicmodel.gvnic.commands import DEVICE_DESCRIPTOR, OPTION_HEADER, OPTION_MODIFY_RING, Opcode, OptionId, Status
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.faults.kinds import (
    NO_STATUS,
    AdminAnswer,
    AdminFault,
    AdminOptions,
    AdminSilent,
    AdminSlow,
    AdminStatus,
    ClockJump,
)
from nicmodel.gvnic.profile import MIN_MTU
from nicmodel.vfio_user.poll import Timer

#: A device option that no driver knows, and features that no device has.
_UNKNOWN_OPTION, _UNKNOWN_FEATURES = 0x7FFF, 1 << 31


def jumped(active: Sequence[Injection]) -> int:
    """How far the NIC's clock is ahead by its jumps, ns."""
    return sum(round(one.hits * one.fault.step * 1e9) for one in active if isinstance(one.fault, ClockJump))


class AdminFaults:
    """The gate of a NIC's admin queue while there are such faults."""

    kinds = (AdminStatus, AdminSlow, AdminSilent, AdminAnswer, AdminOptions, ClockJump)

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._active: Sequence[Injection] = ()
        # The command that waits, and until when; None: as long as the fault lasts.
        self._held: tuple[int, int] | None = None
        self._due: int | None = None
        self._command = ""  # the one that is executed
        self._timer: Timer | None = None

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        for injection in active:
            if isinstance(injection.fault, ClockJump) and injection not in self._active:
                self._arm(injection, injection.fault)
        self._active = active
        if (
            self._held is not None
            and self._due is None
            and not any(isinstance(one.fault, AdminSilent) for one in active)
        ):
            self._held = None
        admin = self._nic.admin
        admin.gate = self._ask if active or self._held is not None else None
        admin.detour = self._alter if any(isinstance(one.fault, AdminAnswer) for one in active) else None
        is_malformed = any(isinstance(one.fault, AdminOptions) for one in active)
        jumps = any(isinstance(one.fault, ClockJump) for one in active)
        admin.time = self._time if jumps else self._nic.clock
        admin.describe = self._describe if is_malformed else self._nic.profile.describe
        admin.resume()

    def _ask(self, number: int) -> int | None:
        queue = self._nic.admin
        # Commands are counted anew after each reset.
        command = self._nic.lives["device"], queue.counter
        name = Opcode(number).name if number in Opcode.__members__.values() else f"{number:#x}"
        self._command = name
        has_waited = False
        if self._held == command:
            if self._due is None or self._nic.clock() < self._due:
                return WAIT
            has_waited = True
        self._held = None
        for injection in self._active:
            fault = injection.fault
            if not isinstance(fault, AdminFault) or fault.opcode not in (None, name):
                continue
            if isinstance(fault, AdminSilent) and injection.hit(command=name):
                self._held, self._due = command, None
                return WAIT
            if isinstance(fault, AdminSlow) and not has_waited and injection.hit(command=name, delay=fault.delay):
                self._held, self._due = command, self._nic.clock() + round(fault.delay * 1e9)
                if self._timer is not None:  # of a command that a reset has ended
                    self._nic.poller.cancel(self._timer)
                self._timer = self._nic.poller.call_at(self._due, queue.resume)
                return WAIT
            if isinstance(fault, AdminStatus) and injection.hit(command=name, status=fault.status):
                queue.count(number, fault.status)
                return NO_STATUS[fault.status] if fault.status in NO_STATUS else Status[fault.status]
        return None

    def _alter(self, answer: bytes) -> bytes:
        """What the command that is executed has the device write."""
        for injection in self._active:
            fault = injection.fault
            if isinstance(fault, AdminAnswer) and fault.opcode in (None, self._command):
                other = overwritten(answer, fault.at, fault.size, fault.value, "big")
                if other != answer and injection.hit(command=self._command, at=fault.at):
                    answer = other
        return answer

    def _arm(self, injection: Injection, fault: ClockJump) -> None:
        injection.after(fault.period, "period", partial(self._jump, injection, fault))

    def _jump(self, injection: Injection, fault: ClockJump) -> None:
        if injection.state == "active":
            injection.hit(step=fault.step)
            self._arm(injection, fault)

    def _time(self) -> int:
        return self._nic.clock() + jumped(self._active)

    def _describe(self) -> bytes:
        """The answer to DESCRIBE_DEVICE."""
        answer = self._nic.profile.describe()
        for injection in self._active:
            if isinstance(injection.fault, AdminOptions) and injection.hit(what=injection.fault.what):
                answer = _malformed(answer, injection.fault.what)
        return answer


def _malformed(answer: bytes, what: str) -> bytes:
    """A device descriptor with options of which each, or one, is malformed (`AdminOptions`)."""
    descriptor = np.frombuffer(answer, DEVICE_DESCRIPTOR, 1).copy()
    rest = answer[DEVICE_DESCRIPTOR.itemsize :]
    options: list[tuple[NDArray[Any], bytes]] = []
    while rest:
        header = np.frombuffer(rest, OPTION_HEADER, 1).copy()
        end = OPTION_HEADER.itemsize + int(header["length"][0])
        options.append((header, rest[OPTION_HEADER.itemsize : end]))
        rest = rest[end:]
    if what == "unknown":
        unknown = np.array([(_UNKNOWN_OPTION, 8, _UNKNOWN_FEATURES)], OPTION_HEADER)
        options.insert(0, (unknown, bytes(8)))
        descriptor["num_device_options"] += 1
    if what == "oldest":
        formats = {one.value for one in OptionId if one.option.queue_format is not None}
        oldest = np.array([(OptionId.GQI_RAW_ADDRESSING, 0, 0)], OPTION_HEADER)
        options = [(oldest, b""), *(one for one in options if int(one[0]["id"][0]) not in formats)]
        descriptor["num_device_options"] = len(options)
    if what == "mtu":
        descriptor["mtu"] = MIN_MTU - 1
    for number, (header, payload) in enumerate(options):
        if what == "required":
            header["required_features"] |= _UNKNOWN_FEATURES
        elif what in ("short", "long"):
            payload = payload[:-2] if what == "short" else payload + bytes(2)
            header["length"] = len(payload)
            options[number] = header, payload
        elif what == "minimums" and header["id"] == OptionId.MODIFY_RING:
            payload = payload[: OPTION_MODIFY_RING.fields["min_rx"][1]]  # type: ignore[index]
            header["length"] = len(payload)
            options[number] = header, payload
    if what == "beyond" and options:
        options[-1][0]["length"] += 64
    packed = b"".join(header.tobytes() + payload for header, payload in options)
    descriptor["total_length"] = DEVICE_DESCRIPTOR.itemsize + len(packed)
    return descriptor.tobytes() + packed
