"""Each command, option and register that is declared is executed, checked, decoded and explained.

Who adds a declaration finds here what is missing yet.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nicmodel.gvnic import commands, registers
from nicmodel.gvnic.commands import Inner, Opcode, OptionId, QueueFormat, Status
from nicmodel.gvnic.contract.admin import Admin
from nicmodel.gvnic.contract.rules import RULES
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.registers import REGISTERS, Bar, Register
from nicmodel.gvnic.testing.adminq import encode_command
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.layout import Form
from nicmodel.observe.detail import detail
from nicmodel.observe.trace import Event, Tracer

ROOT = Path(__file__).parents[2]
#: A device that has everything that there is.
EVERYTHING = Profile(
    formats=tuple(set(QueueFormat) - {QueueFormat.UNSPECIFIED}),
    rss_option=True, deferred_bytes=1 << 20, queue_flush=True, owners=2, ddp_flows=1,
)  # fmt: skip
MEANINGS: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "docs/datasheet/meanings.toml").read_text())
COMMANDS: list[Opcode | Inner] = [*Opcode, *Inner]
#: Structures and registers by the names that they are declared with.
DECLARING = (commands, registers, *commands.OWN_DECLARATIONS)
NAMES = {id(value): name for module in DECLARING for name, value in vars(module).items()}


#: Files that declare, or show, what others use.
_NO_USE = ("registers.py", "declarations.py", "decoder.py", "buffers.py", "report.py")


def used_in(folder: str) -> set[str]:
    """The names that the code in a folder uses, but for that which declares them, and that which shows them."""
    found = set()
    room = ROOT / "nicmodel" / folder
    for file in (*room.glob("*.py"), *(room / "options").rglob("*.py")):
        if folder != "gvnic" or file.name not in _NO_USE:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Attribute | ast.Name):
                    found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return found


EXECUTED, CHECKED = used_in("gvnic"), used_in("gvnic/contract")


def unexplained(name: str, fields: Form) -> list[str]:
    """The fields of a structure that the datasheet has no words for; ``about`` stands for the structure itself."""
    assert isinstance(fields, np.dtype)
    wanted = ["about", *(one for one in fields.names or () if not one.startswith(("reserved", "padding")))]
    return [one for one in wanted if one not in MEANINGS.get(name, {})]


def rules_of(name: str) -> set[str]:
    """The rules that the datasheet names beside a structure."""
    return {rule for entry in MEANINGS.get(name, {}).values() if isinstance(entry, list) for rule in entry[1:]}


@pytest.fixture(scope="module")
def lab() -> Iterator[Loopback]:
    lab = Loopback(EVERYTHING, check=True)
    lab.driver.probe()
    yield lab
    lab.close()


@pytest.fixture
def trace(lab: Loopback) -> Iterator[list[Event]]:
    found: list[Event] = []
    tracer = Tracer(lab.nic, lab.server)
    subscription = tracer.subscribe(found.append, kinds=("admin", "register"))
    yield found
    tracer.unsubscribe(subscription)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_is_executed_and_decoded(command: Opcode | Inner, lab: Loopback, trace: list[Event]) -> None:
    """*Steps*: the command, all of it 0. *Verify*: the device knows it; the trace has its name, queue and fields."""
    fields = command.command.payload.names or ()
    if isinstance(command, Inner):
        place = lab.ram.allocate_zeroed(4096)
        outer = {"inner_opcode": command, "inner_length": 4096, "inner_address": place}
        slot = encode_command(Opcode.EXTENDED_COMMAND, **outer)
    else:
        slot = encode_command(command)
    assert lab.driver.adminq is not None
    lab.driver.adminq.put(slot)
    [status] = lab.driver.adminq.kick()
    # Without an inner command there is nothing to execute.
    expected = [Status.UNIMPLEMENTED] if command == Opcode.EXTENDED_COMMAND else set(Status) - {Status.UNIMPLEMENTED}
    assert status in expected and status != Status.INTERNAL_ERROR
    [event] = [one for one in trace if one["kind"] == "admin"]
    if isinstance(command, Inner):
        assert (event["command"], event["fields"]["inner_opcode"]) == ("EXTENDED_COMMAND", command.name)
        event["fields"] = event["fields"]["inner"]
    else:
        assert event["command"] == command.name
    queue = command.command.queue
    assert event.get("queue") == (f"{queue.way}0" if queue else None)
    assert set(fields) <= set(event["fields"])
    for path in command.command.enumerations:
        value = event["fields"]
        for name in path.split("."):
            value = value[name]
        assert isinstance(value, str | list), path


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_is_checked(command: Opcode | Inner, lab: Loopback) -> None:
    """Verify: by its declaration, by a method of the checker, or by the check of its option."""
    assert lab.checker is not None and not lab.checker.failed
    declared = command.command
    by_option = any(command in check.checks() for check in lab.checker._options)
    if command.own:
        assert by_option
    else:
        assert declared.queue or declared.memory or hasattr(Admin, f"_{command.name.lower()}")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_is_explained(command: Opcode | Inner) -> None:
    assert command.name in MEANINGS[type(command).__name__]
    assert not unexplained(command.name, command.command.payload)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_what_a_command_names_are_fields_of_it(command: Opcode | Inner) -> None:
    declared = command.command
    fields = {one.address for one in declared.memory}
    fields |= {one.length for one in declared.memory if isinstance(one.length, str)}
    fields |= {name for one in (*declared.rings, *declared.gqi_rings) for name in (one.address, one.entries)}
    fields |= {declared.queue.number} if declared.queue else set()
    fields |= {path.partition(".")[0] for path in declared.enumerations}
    assert fields <= set(declared.payload.names or ())
    for one in declared.memory:
        assert one.size(declared.parse(bytes(64))) < 4096


def test_options_are_offered_and_decoded(lab: Loopback) -> None:
    """Verify: all of them, but for that of the oldest devices."""
    expected = set(OptionId) - {OptionId.GQI_RAW_ADDRESSING}
    assert set(EVERYTHING.options) == expected
    shown = detail(lab.nic)["options"]
    assert {name: list(fields) for name, fields in shown.items()} == {
        one.name: list(one.option.payload.names or ()) for one in expected
    }


@pytest.mark.parametrize("option", OptionId, ids=lambda option: option.name)
def test_an_option_is_checked_and_explained(option: OptionId) -> None:
    """Verify: using it without an offer is found (ADM-RES-002, ADM-CMD-005), or there are rules of its fields."""
    declared, name = option.option, NAMES.get(id(option.option.payload), option.name)
    offers_commands = any(one.command.option is declared for one in COMMANDS)
    assert not offers_commands or declared.offers
    checked = declared.queue_format or offers_commands or rules_of(name) & set(RULES)
    assert checked or declared.own or option == OptionId.GQI_RAW_ADDRESSING
    assert option.name in MEANINGS["OptionId"]
    assert declared.feature is None or declared.feature.name in MEANINGS["Feature"]
    assert not unexplained(name, declared.payload)


@pytest.mark.parametrize("register", REGISTERS.values(), ids=lambda register: register.name)
def test_a_register_is_executed_and_checked(register: Register) -> None:
    """Verify: code of the device uses it, and code of the checker if a driver may write it (else REG-002 is all)."""
    assert NAMES[id(register)] in EXECUTED
    assert NAMES[id(register)] in CHECKED or not register.writable


@pytest.mark.parametrize("register", REGISTERS.values(), ids=lambda register: register.name)
def test_a_register_is_decoded_and_explained(register: Register, lab: Loopback, trace: list[Event]) -> None:
    lab.driver.client.region_read(Bar.REGISTERS, register.offset, register.size)
    assert [event["register"] for event in trace] == [register.name]
    assert (register.name in detail(lab.nic)["registers"]) == register.readable
    assert register.name in MEANINGS["registers"]
    if register.flags is not None:
        assert "flags" in trace[0]
        assert set(register.flags.__members__) == set(MEANINGS[register.flags.__name__])
