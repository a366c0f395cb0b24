"""What the driver raises when the device breaks its contract."""

from __future__ import annotations


class ContractViolation(Exception):
    """The device did what no gVNIC may do; a kernel driver would log an error, reset or corrupt memory."""
