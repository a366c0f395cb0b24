"""The device's clock, by which frames are stamped: it counts nanoseconds, and the driver sets it, and how fast it goes.

The driver says the latter as what is added for each cycle of the oscillator; `INCREMENT` has it keep step with the
model's own clock. Linux sets it to the time of day at first, and then reads it every half a second, since a stamp has
only the lower 32 bits (drivers/net/ethernet/intel/idpf/idpf_ptp.c).
"""

from __future__ import annotations

from collections.abc import Callable

from nicmodel.jit.compiled import Record, i64, inlined
from nicmodel.nic.state import Records

#: The increment that the device begins with.
INCREMENT = 1 << 32
#: How much faster or slower the driver may have it go, parts per billion.
MAX_ADJUSTMENT = 1_000_000
_WRAP = 1 << 64


@inlined
def time_at(device: Record, now: int) -> int:
    """What the clock shows when the model's own shows `now`, ns."""
    passed = now - i64(device.clock_since)
    return i64(device.clock_base) + passed + i64(passed * device.clock_rate)


class Clock:
    """See above. Its state is the device's record, for the compiled code.

    Args:
        device: the device's record, shape (1,).
        source: the model's own clock, ns.
    """

    def __init__(self, device: Records, source: Callable[[], int]) -> None:
        self._device = device
        self._source = source
        self.reset()

    def reset(self) -> None:
        """As after power-on: it shows the model's own time."""
        now = self._source()
        self._device["clock_base"] = self._device["clock_since"] = now
        self._device["clock_rate"] = 0.0

    def now(self) -> int:
        """What it shows, ns; 64 bits that wrap."""
        device, now = self._device[0], self._source()
        passed = now - int(device["clock_since"])
        shown = int(device["clock_base"]) + passed + int(passed * float(device["clock_rate"]))
        return shown % _WRAP

    def set(self, time: int) -> None:
        """Have it show `time`, ns."""
        self._device["clock_base"], self._device["clock_since"] = _signed(time), self._source()

    def adjust(self, difference: int) -> None:
        """Have it show so many ns more."""
        self.set(self.now() + difference)

    def set_increment(self, increment: int) -> None:
        """Have it go at another rate from now on."""
        self.set(self.now())
        self._device["clock_rate"] = increment / INCREMENT - 1


def _signed(value: int) -> int:
    """64 bits as a signed number."""
    value %= _WRAP
    return value - _WRAP if value >> 63 else value
