"""Recordings and the NICs that they are of."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from nicmodel.cli.devices import DEVICES
from nicmodel.host import Model
from nicmodel.nic.nic import Nic
from nicmodel.recording.call import RecordingError, octets
from nicmodel.recording.file import Header, Recording, read
from nicmodel.recording.recorder import Recorder


def header_of(device: str, nic: Nic, recorder: Recorder, *, checked: bool) -> Header:
    """What is said in the beginning of a recording of this NIC."""
    profile: Any = nic.profile
    wire = {"headroom": nic.wire.headroom, "offloads": int(nic.wire.offloads), "speed": nic.wire.speed}
    settings = {one.name: _plain(getattr(profile, one.name)) for one in fields(profile)}
    return Header(nic.name, device, settings, wire, recorder.began, checked)


def model_of(header: Header) -> Model[Any]:
    """The NIC that a recording is of, to be made.

    Raises:
        RecordingError: there can be none.
    """
    kind = DEVICES.get(header.device)
    if kind is None:
        raise RecordingError(f"it is of a kind of NIC that there is not here: {header.device[:40]!r}")
    model: Any = kind.make("default", {})
    changes = {}
    for name, value in header.profile.items():
        if not hasattr(model.profile, name):
            raise RecordingError(f"its NIC has a setting that there is not here: {name[:40]!r}")
        changes[name] = _of_kind(getattr(model.profile, name), value, name)
    try:
        made: Model[Any] = replace(model, profile=replace(model.profile, **changes))
    except (ValueError, TypeError, OverflowError) as error:
        raise RecordingError(f"its NIC cannot be: {error}") from None
    return made


def load(path: Path) -> tuple[Recording, Model[Any]]:
    """A recording, and the NIC that it is of.

    Raises:
        ClickException: it cannot be used; the text says why.
    """
    try:
        recording = read(path)
        return recording, model_of(recording.header)
    except RecordingError as error:
        raise click.ClickException(f"{path}: {error}") from None
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, bytes):
        return value.hex()
    return [int(one) for one in value] if isinstance(value, tuple) else value


def _of_kind(like: Any, value: Any, name: str) -> Any:
    """A setting out of JSON, which has to be of the kind that such settings are."""
    try:
        if isinstance(like, bytes):
            return octets(value)
        if isinstance(like, tuple) and isinstance(value, list):
            return tuple(type(like[0])(one) for one in value)
    except ValueError:
        pass
    else:
        if type(value) is type(like):
            return value
    raise RecordingError(f"the setting {name} of its NIC is damaged")
