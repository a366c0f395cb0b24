"""``nicmodel serve``: NICs at sockets, until stopped."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import io
import json
import logging
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from nicmodel.cli import systemd
from nicmodel.cli.devices import ALL_FAULTS, DEVICES
from nicmodel.cli.help import HelpCommand
from nicmodel.cli.log import log_to_stderr
from nicmodel.cli.options import BROKEN
from nicmodel.cli.privileges import User, user
from nicmodel.cli.sockets import Access, access_options
from nicmodel.cli.start import no_garbage
from nicmodel.faults.fault import FaultError
from nicmodel.faults.scenario import Scenario
from nicmodel.faults.weather import FORM as WEATHER_FORM
from nicmodel.faults.weather import Weather
from nicmodel.faults.wire import load as load_wire_faults
from nicmodel.gvnic.profile import PROFILES, SETTINGS, Profile
from nicmodel.host import Host
from nicmodel.nearest import Choice
from nicmodel.nic.mac import parse_mac, random_mac
from nicmodel.nic.setting import Section
from nicmodel.observe.compiling import announce
from nicmodel.observe.snapshot import snapshot
from nicmodel.vfio_user.listener import AddressError, Listener
from nicmodel.vfio_user.poll import Poller
from nicmodel.vfio_user.signals import Signals
from nicmodel.wire.spec import FORMS, JOINING_FORMS, MisfitError, open_wires

if TYPE_CHECKING:
    from nicmodel.nic.nic import Nic
    from nicmodel.observe.findings import Finding
    from nicmodel.recording.keep import Keeper

F = TypeVar("F", bound=Callable[..., object])

_CONTROL = "control"
log = logging.getLogger(__name__)

#: Seconds that a report may wait for the reader of the standard output, and that the end may take.
_PRINT_SECONDS = 1.0
_END_SECONDS = 60.0

_HELP = """Serve NICs at UNIX sockets, until Ctrl-C.

The server outlives its guests: it keeps serving when a guest reboots, and when QEMU ends and a new one connects.

If QEMU runs as another user, as libvirt's does, let its group connect: --socket-group kvm. To run as a systemd service,
see `nicmodel config nicmodel@.service`.

With --record, all that reaches the NIC is kept, and `nicmodel replay` runs it again without a guest.

SIGUSR1 prints the counters, or writes them to the --report file. With --control, the commands stat, show, top, ledger,
trace and findings look into the server, and inject, send, link, reset and fault act on it.
"""
#: Lists in the help, by heading.
_LISTS = {
    "More than one NIC": {
        "a wire for each": "repeat --socket and --wire, in the same order",
        "two, back to back": "two --socket, and --wire link once",
        "any number at a switch": "a --socket for each, and --wire switch once",
    },
    "Wires": {**FORMS, **JOINING_FORMS},
    "Devices": {name: device.about for name, device in DEVICES.items()},
    "Profiles of a gVNIC": {name: meaning for name, (meaning, _) in PROFILES.items()},
}


def _option(name: str) -> str:
    """The option that sets a field of `Profile`."""
    return SETTINGS[name].option or f"--{name.replace('_', '-')}"


def _options_below(section: Section) -> tuple[str, ...]:
    """The options below a heading of the help that set fields of `Profile`."""
    return tuple(_option(name) for name, setting in SETTINGS.items() if setting.section == section)


#: How the help groups the options.
_SECTIONS = {
    "Sockets and wires": ("--socket", "--socket-mode", "--socket-group", "--wire", "--run-as"),
    Section.NIC: ("--device", "--profile", *_options_below(Section.NIC)),
    Section.SPEED: (*_options_below(Section.SPEED), "--busy-poll"),
    Section.OWN: _options_below(Section.OWN),
    "Looking inside and testing": (
        "--control", "--control-mode", "--control-group", "--report", "--metrics", "--check", "--strict", "--record",
        "--record-limit", "--faults", "--weather", "--below-switch", "--verbose",
    ),
}  # fmt: skip


def _mac(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[bytes, ...]:
    try:
        return tuple(parse_mac(value) for value in values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _profile_options(function: F) -> F:
    """An option for each field of `Profile` that has a `Setting`, in their order."""
    for one in reversed(fields(Profile)):
        if one.name in SETTINGS:
            function = _profile_option(one)(function)
    return function


def _profile_option(one: Field[Any]) -> Callable[[F], F]:
    setting, option = SETTINGS[one.name], _option(one.name)
    if one.default is False:
        return click.option(option, one.name, is_flag=True, help=setting.meaning)
    if one.default is True:
        both = f"{option}/--no-{option.removeprefix('--')}"
        return click.option(both, one.name, default=True, show_default=True, help=setting.meaning)
    # What is not given is the profile's, whatever the field's default is.
    meaning = f"{setting.meaning}  [default: {setting.default or one.default}]"
    if one.name == "mac":  # each NIC has its own
        return click.option(option, "macs", multiple=True, callback=_mac, metavar=setting.metavar, help=meaning)
    if setting.metavar:
        return click.option(option, one.name, type=int, metavar=setting.metavar, help=meaning)
    assert setting.range is not None
    return click.option(option, one.name, type=click.IntRange(setting.range.low, setting.range.high), help=meaning)


def _host_and_port(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, int] | None:
    if value is None:
        return None
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is not a host and a port, such as 127.0.0.1:9400")
    return host.strip("[]"), int(port)


def _weather(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Weather | None:
    if value is None:
        return None
    try:
        weather = Weather.parse(value)
        weather.scenario(ALL_FAULTS)
    except FaultError as error:
        raise click.BadParameter(str(error)) from None
    return weather


def _report_file(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not value.parent.is_dir():  # said now, and not when there is something to report
        raise click.BadParameter(f"there is no folder {value.parent}")
    return value


@click.command(cls=HelpCommand, help=_HELP, lists=_LISTS, sections=_SECTIONS)
@click.option("--socket", "sockets", multiple=True, metavar="PATH",
              help="Where QEMU connects. Leave it out where systemd passes sockets.")  # fmt: skip
@access_options("socket", "what the umask leaves", "that of QEMU if it runs as another user.")
@click.option("--wire", "wires", multiple=True, default=("none",), show_default=True, metavar="WIRE",
              help="Where frames go; see above.")  # fmt: skip
@click.option("--run-as", callback=user, metavar="USER",
              help="Once all sockets and wires are open, go on as this user, without any privilege. The user must be "
                   "able to read nicmodel, and to reach what a wire connects to again later.")  # fmt: skip
@click.option("--device", "devices", multiple=True, type=Choice(list(DEVICES)), default=("gvnic",), show_default=True,
              help="What kind of NIC; see above. Once for all of them, or for each, in the order of the "
                   "sockets.")  # fmt: skip
@click.option("--profile", "profile_name", type=Choice(list(PROFILES)), default="default", show_default=True,
              help="What kind of gVNIC; see above. The options below override parts of it.")  # fmt: skip
@_profile_options
@click.option("--busy-poll", type=click.IntRange(0, 1_000_000), default=0, show_default=True, metavar="USECS",
              help="How long to look for more work before going to sleep, at most: only while it comes soon, and "
                   "nobody else wants the CPU. With a spare CPU, 100 lowers latency.")  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), callback=_report_file, metavar="FILE",
              help="Write the counters there as JSON, at the end and on SIGUSR1.")  # fmt: skip
@click.option("--check", is_flag=True,
              help="Check that the driver keeps the contract (`nicmodel rules`); print what it breaks.")  # fmt: skip
@click.option("--strict", is_flag=True, help=f"As --check, and end with exit status {BROKEN} if it broke any.")
@click.option("--record", "records", multiple=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Record all that reaches the NIC, and what it does, for `nicmodel replay`: once for each NIC, in "
                   "the order of the sockets. A file that is there is replaced. Frames are in it, and what the NIC "
                   "reads of the guest's memory.")  # fmt: skip
@click.option("--record-limit", type=click.IntRange(1, 1024), default=64, show_default=True, metavar="MIB",
              help="How large such a file may be; then the recording ends, and the NIC goes on.")  # fmt: skip
@click.option("--control", metavar="PATH", help="Socket for looking inside, and for injecting frames.")
@access_options("control", "600, only for you", "that of those who may look inside.")
@click.option("--faults", "scenario", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
              help="Faults on demand: a scenario in TOML, which begins at once.")  # fmt: skip
@click.option("--weather", callback=_weather, metavar=WEATHER_FORM,
              help="Have the NICs do what the contract allows and devices rarely do, mixed by a seed: see `nicmodel "
                   "weather`. STRENGTH is the greatest probability of each; with a NAME, only these.")  # fmt: skip
@click.option("--below-switch", "peers", multiple=True, metavar="NAME",
              help="Memory of this name (that of its file on the host) is a BAR below the same PCIe switch as the NIC, "
                   "so that the ledger books DMA there as not passing the root complex. Repeat for more.")  # fmt: skip
@click.option("--metrics", callback=_host_and_port, metavar="HOST:PORT",
              help="Serve the counters to Prometheus there, such as at 127.0.0.1:9400.")  # fmt: skip
@click.option("-v", "--verbose", count=True, help="Log what the guest does; given twice, also each admin command.")
def serve(
    sockets: tuple[str, ...],
    socket_mode: int | None,
    socket_group: int | None,
    wires: tuple[str, ...],
    run_as: User | None,
    devices: tuple[str, ...],
    profile_name: str,
    macs: tuple[bytes, ...],
    busy_poll: int,
    report: Path | None,
    check: bool,
    strict: bool,
    records: tuple[Path, ...],
    record_limit: int,
    control: str | None,
    control_mode: int | None,
    control_group: int | None,
    scenario: str | None,
    weather: Weather | None,
    peers: tuple[str, ...],
    metrics: tuple[str, int] | None,
    verbose: int,
    **model: Any,
) -> None:
    """Serve NICs (the help text is the decorator's). The options that describe the model are fields of `Profile`."""
    log_to_stderr([logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)])
    socket_access, control_access = Access(socket_mode, socket_group), Access(control_mode, control_group)
    places, control_place = _places(sockets, socket_access, control, control_access)
    if len(macs) not in (0, len(places)):
        raise click.UsageError(f"{len(macs)} MAC addresses for {len(places)} NICs: give none, or one for each")
    if len(devices) not in (1, len(places)):
        raise click.UsageError(f"{len(devices)} kinds of NICs for {len(places)} NICs: give one, or one for each")
    if len(records) not in (0, len(places)):
        raise click.UsageError(f"{len(records)} recordings for {len(places)} NICs: give none, or one for each")
    devices = devices if len(devices) > 1 else devices * len(places)
    changes = {name: value for name, value in model.items() if value is not None}
    for name in dict.fromkeys(devices):
        _check_device(name, model)
    try:
        models = [_model(name, profile_name, {**changes, "mac": macs[number] if macs else random_mac()})
                  for number, name in enumerate(devices)]  # fmt: skip
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    for one in models:
        _check_needs(one.profile, changes)
    if not hasattr(os, "memfd_create"):
        raise click.ClickException("this system has no memfd_create, which QEMU needs to share a guest's memory")
    announce()

    _open_many_files()
    poller = Poller(busy_poll=busy_poll * 1000)
    try:
        ends, joined = open_wires(wires, len(places))
    except MisfitError as error:
        raise click.UsageError(str(error)) from None
    host = Host(poller)
    with no_garbage():
        for number, (one, wire, group) in enumerate(zip(models, ends, joined, strict=True)):
            made = host.add(
                one,
                wire,
                name=f"nic{number}",
                joined=group,
                check=check or strict,
                on_finding=_print_finding,
                record=bool(records),
            )
            made.below_switch = frozenset(peers)
    load_wire_faults()
    reports = _Reports(host, report)
    actions: dict[signal.Signals, Callable[[], object]] = {signal.SIGUSR1: reports.write}
    actions |= dict.fromkeys((signal.SIGINT, signal.SIGTERM), poller.stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup(1) has it
        actions[signal.SIGHUP] = poller.stop
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(faulthandler.cancel_dump_traceback_later)
            # Entered before all that has to be ended: a signal that comes before the loop runs is kept for it, and one
            # that comes afterwards does not break off the end.
            stack.enter_context(Signals(poller, actions))
            for nic, path, device in zip(host.nics, records, devices, strict=False):
                stack.callback(_record(host, nic, path, device, record_limit << 20).close)
            stack.callback(host.close)
            for nic, place in zip(host.nics, places, strict=True):
                host.serve(nic, socket_access.listen(place) if isinstance(place, str) else place)
            if metrics is not None:
                _export(host, metrics)
            if isinstance(control_place, str) and control_access.given:
                control_place = control_access.listen(control_place)
            if control_place is not None:
                host.open_control(control_place)
            host.start()
            if scenario is not None:
                Scenario.load(scenario, ALL_FAULTS).begin(host.faults)
            if weather is not None:
                for faults in host.faults:
                    weather.begin(faults)
            if run_as is not None:
                try:
                    run_as.become()
                except PermissionError as error:
                    raise click.ClickException(f"--run-as {run_as.name or run_as.uid}: {error.strerror}") from None
            _announce(host)
            systemd.notify("READY=1", f"STATUS={len(host.nics)} NICs")
            poller.serve_forever()
            systemd.notify("STOPPING=1")
            # Whatever may hang at the end, such as a file system: the stacks are printed, and the exit status is 1.
            faulthandler.dump_traceback_later(_END_SECONDS, exit=True)
            written = reports.write()
    except FaultError as error:
        raise click.ClickException(str(error)) from None
    except AddressError as error:
        raise click.ClickException(str(error.strerror)) from None
    if not written:
        raise click.exceptions.Exit(1)  # the log says why
    if strict and any(checker.findings or checker.failed for checker in host.checkers.values()):
        raise click.exceptions.Exit(BROKEN)


def _open_many_files() -> None:
    """Be allowed to open as many files as the system allows to those who ask: each vector of a client is one.

    Most processes start with 1024, for fear of select(2), and 60 NICs of 8 queues have more vectors.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _model(device: str, profile: str, changes: Mapping[str, Any]) -> Any:
    """A NIC to be made; what its kind does not have is left as it is."""
    kind = DEVICES[device]
    return kind.make(profile, {name: value for name, value in changes.items() if kind.has(name)})


def _check_device(device: str, settings: Mapping[str, Any]) -> None:
    """See that nothing was asked for that this kind of NIC does not have."""
    kind, context = DEVICES[device], click.get_current_context()
    given = [name for name in settings if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    unknown = [_option(name) for name in given if not kind.has(name)]
    if not kind.profiles and context.get_parameter_source("profile_name") is ParameterSource.COMMANDLINE:
        unknown.insert(0, "--profile")
    if unknown:
        raise click.UsageError(f"a NIC of the kind {device} has no {', '.join(unknown)}")


def _check_needs(profile: Any, given: Mapping[str, Any]) -> None:
    for name, setting in SETTINGS.items():
        if setting.needs and name in given and not getattr(profile, setting.needs, True):
            raise click.UsageError(f"{_option(name)} wants {_option(setting.needs)}")


def _places(
    sockets: Sequence[str], socket_access: Access, control: str | None, control_access: Access
) -> tuple[list[str | Listener], str | Listener | None]:
    """Where the NICs are served, and where the control socket is: paths, or sockets that systemd has made.

    Of those, the one called ``control`` is for control; the others are NICs in their order.
    """
    try:
        passed = systemd.take_sockets()
    except AddressError as error:
        raise click.ClickException(str(error.strerror)) from None
    nics = [listener for name, listener in passed if name != _CONTROL]
    controls = [listener for name, listener in passed if name == _CONTROL]
    if nics and (sockets or socket_access.given):
        raise click.UsageError("the NICs' sockets are handed over by systemd, whose unit says where and for whom")
    if controls and (control or control_access.given or len(controls) > 1):
        raise click.UsageError("the control socket is handed over by systemd, whose unit says where and for whom")
    if control is None and control_access.given:
        raise click.UsageError("--control-mode and --control-group want --control")
    if not nics and not sockets:
        raise click.UsageError("where is QEMU to connect? Say --socket PATH")
    return list(nics or sockets), controls[0] if controls else control


def _print_finding(finding: Finding) -> None:
    click.echo(str(finding), err=True)


def _record(host: Host, nic: Nic, path: Path, device: str, limit: int) -> Keeper:
    """Begin to record a NIC."""
    from nicmodel.cli.recordings import header_of  # who records nothing starts without it
    from nicmodel.recording.file import Writer
    from nicmodel.recording.keep import Keeper

    recorder = host.recorders[nic.name]
    try:
        file = path.open("wb")
    except OSError as error:
        raise click.ClickException(f"--record {path}: {error.strerror}") from None
    return Keeper(recorder, Writer(file, header_of(device, nic, recorder, checked=nic.name in host.checkers), limit))


def _export(host: Host, wanted: tuple[str, int]) -> None:
    try:
        address, port = host.open_metrics(wanted).address
    except OSError as error:
        raise click.ClickException(f"no metrics at {wanted[0]}:{wanted[1]}: {error.strerror or error}") from None
    click.echo(f"metrics at http://{f'[{address}]' if ':' in address else address}:{port}/metrics")


def _announce(host: Host) -> None:
    sockets = [server.path for server in host.servers]
    devices = " \\\n  ".join(
        "-device '" + json.dumps(
            {"driver": "vfio-user-pci", "rombar": 0, "socket": {"type": "unix", "path": str(Path(socket).resolve())}},
            separators=(",", ":"),
        ) + "'"
        for socket in sockets
    )  # fmt: skip
    for nic, socket in zip(host.nics, sockets, strict=True):
        click.echo(f"{nic.name}: {nic.profile.mac.hex(':')} at {socket}, wire {nic.wire.name}")
    click.echo(
        "QEMU (10.1 or later; nicmodel config tells where from) needs, besides its own arguments:\n\n"
        "  -machine q35,memory-backend=ram -m 2G \\\n"
        "  -object memory-backend-memfd,id=ram,size=2G,share=on \\\n"
        f"  {devices}\n\n"
        "ready"
    )
    sys.stdout.flush()


class _Reports:
    """The counters, printed or written to a file at the end and on SIGUSR1.

    A report that cannot be written, because the disk is full or nobody reads what is printed, is counted by every NIC
    (``reports_failed``). Why is said once, until one has been written again.
    """

    def __init__(self, host: Host, path: Path | None) -> None:
        self._host, self._path = host, path
        self._complaint = ""

    def write(self) -> bool:
        """Write one; whether that was possible. A reader of what is printed that has gone has enough."""
        try:
            if self._path is None:
                self._print()
            else:
                _replace(self._path, json.dumps(self._snapshots(), indent=1))
        except (OSError, ValueError) as error:  # ValueError: the standard output is closed
            for nic in self._host.nics:
                nic.diagnostics.count("reports_failed")
            complaint = getattr(error, "strerror", None) or str(error)
            if complaint != self._complaint:
                log.error("no report: %s: %s", self._path or "the standard output", complaint)
            self._complaint = complaint
            return isinstance(error, BrokenPipeError)
        self._complaint = ""
        return True

    def _snapshots(self) -> list[dict[str, Any]]:
        snapshots = [snapshot(nic, server.stats) for nic, server in self._host.served]
        checkers = self._host.checkers
        for nic in snapshots:
            if nic["name"] in checkers:
                nic["findings"] = [finding.as_dict() for finding in checkers[nic["name"]].findings]
        return snapshots

    def _print(self) -> None:
        from nicmodel.client.report import show  # a server that writes a file starts without rich

        if sys.stdout is None:
            return
        screen = _Screen()
        with contextlib.redirect_stdout(screen):
            show(self._snapshots())
        sys.stdout.flush()
        # Once its reader did not read, there is no more waiting for it.
        _write_within(sys.stdout.fileno(), screen.getvalue().encode(screen.encoding, "backslashreplace"),
                      0 if self._complaint else _PRINT_SECONDS)  # fmt: skip


class _Screen(io.StringIO):
    """What is to be printed, made as the standard output wants it."""

    def __init__(self) -> None:
        super().__init__()
        self._stdout = sys.stdout

    def isatty(self) -> bool:
        """Whether colours are worth while."""
        return self._stdout.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Which decides what lines of tables are drawn with."""
        return self._stdout.encoding


def _write_within(fd: int, data: bytes, seconds: float) -> None:
    """Write to a descriptor whose reader may be slow.

    Raises:
        OSError: it cannot be written, or not all was read within this time.
    """
    waiter = select.poll()
    waiter.register(fd, select.POLLOUT)
    end = time.monotonic() + seconds
    while data:
        if not waiter.poll(max(0.0, end - time.monotonic()) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "nobody reads it")
        data = data[os.write(fd, data[: select.PIPE_BUF]) :]  # so much a pipe that polls as writable takes at once


def _replace(path: Path, text: str) -> None:
    """Have a file hold `text`: a reader finds the old one or the new one, never half of one."""
    path = path.resolve()
    if path.exists() and not path.is_file():  # a device: it is not to be replaced
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            _write_within(fd, text.encode(), _PRINT_SECONDS)
        finally:
            os.close(fd)
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
