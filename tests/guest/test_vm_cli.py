"""The command `nicmodel vm` as a user meets it."""

import os
import re
import select
import subprocess
import sys
import time

import pytest

from nicmodel.vm.qemu import spawn

pytestmark = pytest.mark.guest

NICMODEL = [sys.executable, "-m", "nicmodel.cli", "vm"]


def nicmodel(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NICMODEL, *arguments], input=stdin, capture_output=True, text=True, timeout=120)


def test_one_command() -> None:
    run = nicmodel("--run", "echo out; echo err >&2; exit 3")
    assert (run.stdout, run.returncode) == ("out\n", 3)
    assert "err\n" in run.stderr


def test_a_script_on_standard_input() -> None:
    """And with memories of devices: the guest has them, and what is printed says where."""
    memories = ("--layout", "switch", "--accelerator", "hbm=16M", "--device-memory", "coherent=128M")
    script = "nproc\nls /dev/bar_dmabuf/*\nls -d /sys/devices/system/node/node1\nkill -9 $$\n"
    run = nicmodel("--memory", "512M", "--vcpus", "1", *memories, stdin=script)
    cpus, device, node = run.stdout.splitlines()
    assert (cpus, node, run.returncode) == ("1", "/sys/devices/system/node/node1", 128 + 9)
    assert re.search(rf"^hbm: {device} in the guest, /proc/\d+/fd/\d+ here$", run.stderr, re.MULTILINE)
    assert "the guest boots" not in run.stderr  # but starts from a snapshot
    assert re.search(r"^coherent: node 1 in the guest, /proc/\d+/fd/\d+ here$", run.stderr, re.MULTILINE)


def test_a_shell_on_the_terminal() -> None:
    terminal, theirs = os.openpty()
    said = b""

    def until(pattern: bytes) -> None:
        nonlocal said
        deadline = time.monotonic() + 60
        while not re.search(pattern, said):
            assert select.select([terminal], [], [], deadline - time.monotonic())[0], said
            said += os.read(terminal, 4096)
        said = b""

    # Of a session of its own, whose terminal it is. No fork of this process, which has several threads.
    command = ["setsid", "--ctty", *NICMODEL]
    with spawn(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        try:
            until(rb"# $")
            os.write(terminal, b"echo $((6 * 7)) on $(tty)\n")
            until(rb"42 on /dev/pts/")
            os.write(terminal, b"exit 5\n")
            assert process.wait(60) == 5
        finally:
            process.kill()
    os.close(terminal)


def test_the_printed_command_line_boots() -> None:
    """*Steps*: have the kernel start a program that ends at once. *Verify*: it did; the console is on the terminal."""
    command = nicmodel("--print", "--cmdline", "panic=-1 rdinit=/usr/bin/true", "--", "-no-reboot").stdout
    run = subprocess.run(["sh", "-c", f"exec {command}"], capture_output=True, text=True, timeout=120)
    assert "Attempted to kill init! exitcode=0x00000000" in run.stdout


def test_prepared_files_serve_the_layout_files() -> None:
    run = nicmodel("--prepare")
    assert [line.partition("=")[0] for line in run.stdout.splitlines()] == ["KERNEL", "INITRD", "QEMU"]
    script = f'{run.stdout}\ntest -f "$KERNEL" && test -f "$INITRD" && eval $QEMU --version'
    version = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("QEMU emulator version")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kernel", "2.4"], "nicmodel: no kernel '2.4': say one of trixie-backports"),
        (["--memory", "lots"], "nicmodel: 'lots' is not a size"),
        (["--nic", "/no/such.sock"], "Failed to connect to '/no/such.sock'"),
        (["--accelerator", "hbm=100M"], "a BAR's size is a power of two, such as 128M"),
        (["--layout", "two-nics"], "nicmodel: layout 'two-nics' wants 2 NICs, and 0 are given"),
    ],
)
def test_errors_are_one_sentence_and_status_1(arguments: list[str], words: str) -> None:
    run = nicmodel(*arguments, "--run", "true")
    assert run.returncode == 1
    assert words in run.stderr
    assert "Traceback" not in run.stderr
