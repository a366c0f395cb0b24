"""Guests that start from a snapshot are as those that have booted, and each is one of its own."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from lab import connect_pair, ping

from nicmodel.cache import cache_dir
from nicmodel.vm import snapshot
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.layout import Nic
from nicmodel.vm.server import NicServer

pytestmark = pytest.mark.guest

MACS = [f"02:00:00:00:00:0{number}" for number in (3, 1, 2, 4)]


def interfaces(guest: Guest) -> list[str]:
    """Addresses of eth0, eth1 and so on."""
    return guest.run("cat /sys/class/net/eth*/address").stdout.split()


@pytest.mark.parametrize("layout", ["q35", pytest.param("switch", marks=pytest.mark.long)])
def test_nics_are_where_they_are_after_a_boot(layout: str) -> None:
    """By their order, whatever their addresses; and also after the guest was rebooted, with its boot loader's help."""
    words = [word for mac in MACS for word in ("--wire", "link", "--mac", mac)]
    with NicServer(words, sockets=4) as server:
        nics = [Nic(path) for path in server.sockets]
        with Guest(GuestConfig(nics=nics, layout=layout)) as guest:
            assert guest.why_booted == ""
            assert interfaces(guest) == MACS
            assert guest.qmp.execute("query-status")["status"] == "running"
            found = guest.run("readlink /sys/class/net/eth*/device; lsmod | sort").stdout
            connect_pair(guest)
            ping(guest, "10.1.0.2", count=20, size=4000)
            if layout == "q35":  # reboots in test_lifecycle.py
                return
            before = guest.run("cat /proc/sys/kernel/random/boot_id").stdout
            guest.reboot()
            assert guest.run("cat /proc/sys/kernel/random/boot_id").stdout != before
            assert interfaces(guest) == MACS
            assert guest.run("readlink /sys/class/net/eth*/device; lsmod | sort").stdout == found
            connect_pair(guest)
            ping(guest, "10.1.0.2", count=20, size=4000)


def test_two_guests_have_nothing_random_in_common() -> None:
    """What the kernel makes up: identity, addresses, numbers for programs, TCP's ports and sequence numbers."""
    made_up = """
        cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid
        head -c 16 /dev/urandom | sha256sum
        head -c 16 /dev/random | sha256sum
        ip link add name x type dummy && cat /sys/class/net/x/address
        python3 -c 'import os, uuid; print(os.getrandom(16)); print(uuid.uuid4())'
        ip addr add 10.9.0.1/24 dev x && ip link set x up
        tcpdump -Z root -i lo -c 1 -nS 'tcp[tcpflags] = tcp-syn' 2>/dev/null >/run/syn & sleep 0.5
        until grep -q Flags /run/syn; do socat -u OPEN:/dev/null TCP:127.0.0.1:9; sleep 0.1; done 2>/dev/null
        sed -E 's/.* 127.0.0.1.([0-9]+) > .* seq ([0-9]+),.*/port \\1\\nsequence \\2/' /run/syn
    """
    with Guest() as one, Guest() as other:
        assert one.why_booted == other.why_booted == ""
        said = [guest.run(made_up).stdout.splitlines() for guest in (one, other)]
    assert len(said[0]) == len(said[1]) == 9
    assert not set(said[0]) & set(said[1])


def test_the_clock_is_right() -> None:
    with Guest() as guest:
        assert guest.why_booted == ""
        before = time.time()
        now = float(guest.run("date +%s.%N").stdout)
        assert before - 1 < now < time.time() + 1


def test_the_console_has_what_was_said_before() -> None:
    with Guest() as guest:
        assert guest.why_booted == ""
        assert "Run /init as init process" in guest.console.read_text()
        guest.run("echo something new > /dev/console")
        assert "something new" in guest.console.read_text()


def test_a_snapshot_that_is_of_no_use_is_deleted_and_the_guest_boots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Guest() as guest:
        kept = cache_dir() / "snapshots" / guest._snapshot_name()
    mine = tmp_path / "snapshots" / kept.name
    shutil.copytree(kept, mine, copy_function=lambda *paths: subprocess.run(["cp", "--sparse=always", *paths]))
    with (mine / "state").open("r+b") as file:
        file.truncate(1 << 20)
    monkeypatch.setattr(snapshot, "cache_dir", lambda: tmp_path)
    with Guest() as guest:
        assert "snapshot is of no use" in guest.why_booted
        assert guest.run("hostname").stdout == "guest\n"
    assert (
        "nicmodel: the guest boots: its snapshot is of no use, and deleted: it cannot be read"
        in capsys.readouterr().err
    )
    assert not mine.exists()


@pytest.mark.long
def test_a_snapshot_that_cannot_be_made_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file cannot be written, as when the disk is full: the guest is there, and nothing is left behind."""
    save = snapshot.save
    monkeypatch.setattr(snapshot, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(snapshot, "save", lambda qmp, path: save(qmp, Path("/dev/full")))
    with Guest(GuestConfig(memory="512M")) as guest:
        assert guest.run("hostname").stdout == "guest\n"
    said = capsys.readouterr().err
    assert "nicmodel: the guest boots: no snapshot of it can be made: it cannot be written: " in said
    assert not [path for path in (tmp_path / "snapshots").iterdir() if path.is_dir()]


def test_a_nic_that_nobody_serves_is_no_reason_to_boot(tmp_path: Path) -> None:
    with (
        pytest.raises(VmError, match=r"device_add.*Failed to connect to .*nobody\.sock"),
        Guest(GuestConfig(nics=[Nic(tmp_path / "nobody.sock")])),
    ):
        pass
