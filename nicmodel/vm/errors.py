"""What can go wrong between a package archive and a running guest."""


class VmError(Exception):
    """A guest could not be prepared, started or reached.

    The message is one sentence for the person at the terminal: what failed and what to do about it. Guest output
    (the console's last lines) may follow on further lines.
    """
