"""All targets by name."""

from __future__ import annotations

from .admin import AdminTarget
from .campaign import Target
from .captures import CapturesTarget
from .control import ControlTarget
from .idpf import IdpfMailboxTarget, IdpfRingsTarget
from .messages import MessagesTarget
from .rings import RingsTarget
from .wires import WiresTarget

_ALL: list[Target] = [
    MessagesTarget(), AdminTarget(), RingsTarget(), IdpfMailboxTarget(), IdpfRingsTarget(), WiresTarget(),
    ControlTarget(), CapturesTarget(),
]  # fmt: skip
TARGETS = {target.name: target for target in _ALL}
