"""All targets by name."""

from __future__ import annotations

from .admin import AdminTarget
from .campaign import Target
from .messages import MessagesTarget
from .rings import RingsTarget

TARGETS: dict[str, Target] = {target.name: target for target in (MessagesTarget(), AdminTarget(), RingsTarget())}
