"""Faults on demand: what goes wrong on a wire, in a device or on its bus, at a time and with a probability of choice.

Some are behaviours that a device may show without breaking its contract: `Weather` mixes them by a seed.

Nothing of it is on the packet path while no fault is at work. What there is, and what a stock driver makes of it:
``nicmodel faults``, or docs/faults.md.
"""

from nicmodel.faults.fault import Fault, FaultError, Injection
from nicmodel.faults.faults import Faults
from nicmodel.faults.scenario import Scenario
from nicmodel.faults.weather import Weather

__all__ = ["Fault", "FaultError", "Faults", "Injection", "Scenario", "Weather"]
