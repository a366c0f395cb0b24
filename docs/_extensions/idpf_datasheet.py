"""The datasheet of the second device: tables and diagrams of its registers, messages and descriptors.

Made from the declarations in `nicmodel.idpf`; a declaration that the page does not show is a warning, and so an
error of a strict build.
"""

from __future__ import annotations

from collections.abc import Iterator

from boxes import Field, draw
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from nicmodel.idpf import descriptors, registers, virtchnl
from nicmodel.idpf.virtchnl import Op
from nicmodel.nic.layout import Layout

logger = logging.getLogger(__name__)

_PAGE = "datasheet/idpf"
_LAYOUTS = {
    name: one for module in (descriptors, registers) for name, one in vars(module).items() if isinstance(one, Layout)
}


class IdpfDirective(SphinxDirective):
    """``{idpf} registers``, ``{idpf} messages``, or ``{idpf}`` with the name of a descriptor."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Called by docutils."""
        for module in (descriptors, registers, virtchnl):
            self.env.note_dependency(str(module.__file__))
        name = self.arguments[0]
        self.env.__dict__.setdefault("idpf_shown", set()).add(name)
        made = {"registers": _registers, "messages": _messages}
        lines = made[name]() if name in made else _descriptor(_LAYOUTS[name])
        return self.parse_text_to_nodes("\n".join(lines))


def _registers() -> Iterator[str]:
    yield from ("| offset | registers | name | |", "|--:|--:|---|---|")
    for register in registers.REGISTERS.values():
        kind = "doorbell" if register.doorbell else ""
        yield f"| {register.offset:#06x} | {register.count} | `{register.name}` | {kind} |"
    yield ""


def _messages() -> Iterator[str]:
    yield from ("| number | message | payload, bytes | fields |", "|--:|---|--:|---|")
    for op in Op:
        message = op.message
        size = str(message.head.itemsize)
        fields = ", ".join(f"`{name}`" for name in message.head.names or () if not name.startswith("pad"))
        if message.many is not None:
            size += f" + {message.many.itemsize} each"
            inner = ", ".join(f"`{name}`" for name in message.many.names or () if not name.startswith("pad"))
            fields += f"; `{message.count}` {message.name}" + (f", of each {inner}" if inner else "")
        yield f"| {int(op)} | {op.name} | {size} | {fields} |"
    yield ""


def _descriptor(layout: Layout) -> Iterator[str]:
    fields = [Field(name, bits.bit, bits.width) for name, bits in layout.fields.items()]
    size = -(-layout.size // 4) * 4
    yield from (f"{layout.size} bytes, little-endian.", "", "```{raw} html")
    yield from (draw(fields, size, big_endian=False, title=layout.name), "```", "")
    yield from ("| byte | bits | field |", "|--:|--:|---|")
    for field in fields:
        byte, low = divmod(field.bit, 8)
        bits = str(field.width) if not low and field.width % 8 == 0 else f"[{low + field.width - 1}:{low}]"
        yield f"| {byte} | {bits} | `{field.name}` |"
    yield ""


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of what the page leaves out."""
    for name in sorted({*_LAYOUTS, "registers", "messages"} - env.__dict__.get("idpf_shown", set())):
        logger.warning("datasheet: %s does not show %s", _PAGE, name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("idpf", IdpfDirective)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
