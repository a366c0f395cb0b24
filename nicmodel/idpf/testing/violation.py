"""What the driver in Python raises when the device breaks the contract."""


class ContractViolation(Exception):
    """The device did what no driver can make sense of."""
