"""What a user is told about a guest's crash."""

import pytest

from nicmodel.vm.guest import explain_crash

# As Linux 7.3 prints it; shortened in the middle.
OOPS = (
    "[  177.588414] Oops: int3: 0000 [#1] SMP NOPTI\r\n"
    "[  177.589921] CPU: 0 UID: 0 PID: 551 Comm: ping Not tainted 7.3.4+deb13-cloud-amd64 #1 PREEMPT(lazy)\r\n"
    "[  177.590802] RIP: 0010:udp_ehashfn+0x32/0x110\r\n"
    "[  177.592337] Code: 00 41 57 41 56 49 89 fe 41 55 48 83 ec 10 45 89 c5 {} <1f> 44 00 00 41 8b 86 c8\r\n"
    "[  177.604524] Code: 48 89 fa 4c 89 df e8 78 48 8b 44 24 10 0f 05 cc <5b> c3 0f 1f 80 00 00 00 00 83\r\n"
    "[  177.614092] ---[ end Kernel panic - not syncing: Fatal exception in interrupt ]---\r\n"
)


def test_a_breakpoint_that_memory_does_not_have_is_qemus() -> None:
    explained = explain_crash(OOPS.format("0f").encode())
    assert "QEMU's emulated processors" in explained
    assert "NICMODEL_ACCEL=tcg,thread=single" in explained


@pytest.mark.parametrize(
    "console",
    [
        OOPS.format("cc"),  # a jump into padding: the driver's own fault
        OOPS.format("0f").replace("Oops: int3", "BUG: kernel NULL pointer dereference"),
        "",
    ],
)
def test_any_other_crash_is_left_unexplained(console: str) -> None:
    assert not explain_crash(console.encode())
