"""When an interface of a guest can send."""

from __future__ import annotations


def is_up(interface: str) -> str:
    """A shell's condition: an interface is up, its cable is in, and the kernel has noticed.

    The driver says that there is a carrier; the kernel then makes the queues ready in its own time (linkwatch, a second
    later at worst), and drops what is sent before. Its operstate follows with that.

    Args:
        interface: Its name, or a variable of the shell's.
    """
    folder = f"/sys/class/net/{interface}"
    return f'[ "$(cat {folder}/carrier {folder}/operstate 2>/dev/null)" = "1\nup" ]'
