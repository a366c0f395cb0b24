"""The agent's protocol, with an agent that runs on the host at the other end of a socket pair."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nicmodel.vm import agent
from nicmodel.vm.channel import Channel, GuestTimeoutError
from nicmodel.vm.errors import VmError


class Guest:
    """The agent in a process of its own, and a channel to it."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.channel = Channel(self.ours)
        self.start_agent()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        assert self.channel.wait_greeting(1, 10)

    def start_agent(self) -> None:
        # This agent's clock and random numbers are the host's own: it only says what it would do.
        program = (
            "import sys; from nicmodel.vm import agent\n"
            "agent.settle = lambda time, entropy: print(time, entropy, file=open('/dev/stderr', 'w'), flush=True)\n"
            "agent.Agent(int(sys.argv[1])).serve()"
        )
        descriptor = self.theirs.fileno()
        self.agent = subprocess.Popen(
            [sys.executable, "-c", program, str(descriptor)],
            pass_fds=[descriptor],
            stderr=subprocess.PIPE,
            text=True,
        )

    def read(self) -> None:
        while data := self.ours.recv(1 << 16):
            self.channel.receive(data)

    def stop(self) -> None:
        self.agent.kill()
        self.agent.wait()
        self.channel.fail("stopped")
        self.reader.join()
        self.ours.close()
        self.theirs.close()


@pytest.fixture(scope="module")
def shared_guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.stop()


@pytest.fixture
def channel(shared_guest: Guest) -> Channel:
    return shared_guest.channel


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.stop()


def test_output_and_status(channel: Channel) -> None:
    result = channel.start("echo out; echo err >&2; exit 3").wait(60)
    assert (result.stdout, result.stderr, result.status) == ("out\n", "err\n", 3)


def test_arguments_are_passed_as_they_are(channel: Channel) -> None:
    assert channel.start(["echo", "a  b", "$HOME", "*"]).wait(60).stdout == "a  b $HOME *\n"


def test_a_program_that_does_not_exist(channel: Channel) -> None:
    with pytest.raises(VmError, match="no-such-program"):
        channel.start(["no-such-program"]).wait(60)


@pytest.mark.parametrize("size", [0, 1, 4096, 1 << 20, 5_000_001])
def test_input_of_any_size_comes_back(channel: Channel, size: int) -> None:
    data = os.urandom(size)
    process = channel.start(["cat"])
    if data:
        process.write(data)
    process.close_input()
    assert process.wait(20).status == 0
    assert process.output_bytes() == data


def test_input_that_nobody_reads(channel: Channel) -> None:
    process = channel.start(["true"])
    process.write(bytes(3_000_000))
    process.close_input()
    assert process.wait(60).status == 0


def test_many_at_once(channel: Channel) -> None:
    def work(n: int) -> str:
        process = channel.start(f"cat; seq {n} 5000 | tail -1; exit {n}")
        process.write(b"%d\n" % n)
        process.close_input()
        result = process.wait(30)
        assert result.status == n
        return result.stdout

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(64))) == [f"{n}\n5000\n" for n in range(64)]


def test_signals_reach_the_whole_group(channel: Channel) -> None:
    process = channel.start("sleep 100; echo after $?")
    time.sleep(0.2)
    process.kill(signal.SIGTERM)
    assert process.wait(60).status == -signal.SIGTERM


def test_a_signal_after_the_end_is_harmless(channel: Channel) -> None:
    process = channel.start("true")
    process.wait(60)
    process.kill()
    assert channel.start("echo still here").wait(60).stdout == "still here\n"


def test_a_child_that_writes_on_does_not_hold_the_command_up(channel: Channel) -> None:
    process = channel.start("yes & echo $!")
    result = process.wait(60)
    assert result.status == 0
    status = Path(f"/proc/{result.stdout.split()[0]}/stat")
    for _ in range(1200):
        # Its output is closed: it dies of that. In a container nobody may collect it.
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it lives")


def test_timeout_quotes_what_was_said_and_leaves_it_running(channel: Channel) -> None:
    process = channel.start("echo hello; read line; echo $line")
    process.expect("hello", 60)
    with pytest.raises(GuestTimeoutError, match=r"did not end within 0\.2 s: hello"):
        process.wait(0.2)
    process.write(b"bye\n")
    assert process.wait(60).stdout == "hello\nbye\n"


def test_a_script_is_named_by_its_first_line(channel: Channel) -> None:
    """So that the first line of a message says what is wrong."""
    script = channel.start(["sh", "-c", "\nsleep 100\necho never\n"])
    with pytest.raises(GuestTimeoutError, match=r"^'sh -c …' in the guest did not end within 0\.01 s: no output$"):
        script.wait(0.01)
    script.kill()
    script.wait()
    line = channel.start("x" * 200)
    assert line.command == f"{'x' * 120} …"
    line.wait()


def test_expect_fails_when_the_process_ends_without_it(channel: Channel) -> None:
    with pytest.raises(VmError, match=r"(?s)ended without 'ready': .*oops"):
        channel.start("echo oops >&2").expect("ready", 10)


def test_a_terminal(channel: Channel) -> None:
    process = channel.start(["bash", "--norc"], terminal=(33, 111))
    process.write(b"stty size\n")
    process.expect("33 111", 60)
    process.resize(44, 122)
    process.write(b"stty size\n")
    process.expect("44 122", 60)
    process.write(b"exit 5\n")
    assert process.wait(60).status == 5


def test_a_sink_takes_the_output_as_it_comes(channel: Channel) -> None:
    taken: dict[int, bytes] = {1: b"", 2: b""}

    def sink(descriptor: int, data: bytes) -> None:
        taken[descriptor] += data

    process = channel.start("echo out; echo err >&2", sink=sink)
    assert process.wait(60).stdout == ""
    assert taken == {1: b"out\n", 2: b"err\n"}


def test_a_failed_agent_is_noticed_when_the_next_one_greets(guest: Guest) -> None:
    waiting = guest.channel.start("sleep 100")
    time.sleep(0.2)
    guest.agent.kill()
    guest.agent.wait()
    guest.start_agent()
    with pytest.raises(VmError, match="the agent failed and was restarted"):
        waiting.wait(60)
    assert guest.channel.wait_greeting(2, 60)
    assert guest.channel.start("echo again").wait(60).stdout == "again\n"


def test_after_a_reset_what_is_left_of_old_frames_is_dropped(guest: Guest) -> None:
    """A guest is reset in the middle of a frame in each direction."""
    guest.agent.kill()
    guest.agent.wait()
    guest.ours.sendall(agent.HEADER.pack(1000, 77, agent.STDIN) + bytes(500))
    guest.theirs.sendall(agent.HEADER.pack(1000, 77, agent.STDOUT) + bytes(500))
    time.sleep(0.2)
    guest.channel.reset("the guest was reset")
    guest.start_agent()
    assert guest.channel.wait_greeting(2, 60)
    assert guest.channel.start("echo again").wait(60).stdout == "again\n"


def test_the_answer_to_another_agents_greeting_is_no_greeting(guest: Guest) -> None:
    """The host's answer to one agent may reach the next: it must not take what follows for frames."""
    guest.agent.kill()
    guest.agent.wait()
    guest.channel.reset("the guest was reset")
    guest.ours.sendall(agent.HELLO + b"12345678" + agent.HEADER.pack(1000, 77, agent.STDIN) + bytes(500))
    guest.start_agent()
    assert guest.channel.wait_greeting(2, 60)
    assert guest.channel.start("echo again").wait(60).stdout == "again\n"


def test_an_agent_that_is_woken_greets_another_host(guest: Guest) -> None:
    """As in a guest that was restored from a snapshot, whose agent knows nothing of its new host.

    *Steps*: put a new channel in the place of the old one; run a command before and after waking the agent.
    *Verify*: the time is now, the entropy another each time; there is no answer before, and a greeting and one after.
    """
    said = []
    for _ in range(2):
        guest.channel = Channel(guest.ours)
        before = time.time()
        guest.channel.wake()
        assert guest.channel.wait_greeting(1, 10)
        assert guest.agent.stderr
        now, entropy = guest.agent.stderr.readline().split()
        assert before <= float(now) <= time.time()
        assert len(bytes.fromhex(entropy)) == 64
        said.append(entropy)
        assert guest.channel.start("echo again").wait(10).stdout == "again\n"
    assert said[0] != said[1]


def test_failure_reaches_those_who_wait_and_those_who_come_later(guest: Guest) -> None:
    waiting = guest.channel.start("sleep 100")
    threading.Timer(0.2, guest.channel.fail, ["the guest crashed"]).start()
    with pytest.raises(VmError, match="the guest crashed"):
        waiting.wait(60)
    with pytest.raises(VmError, match="the guest crashed"):
        guest.channel.start("true").wait(60)


def test_frames_may_arrive_byte_by_byte() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours)
        for byte in b"noise" + agent.HELLO + b"12345678":
            channel.receive(bytes([byte]))
        assert theirs.recv(100) == agent.HELLO + b"12345678"
        process = channel.start(["x"])
        frames = agent.HEADER.pack(3, 1, agent.STDOUT) + b"abc" + agent.HEADER.pack(2, 1, agent.EXIT) + b"42"
        for byte in frames:
            channel.receive(bytes([byte]))
        assert process.wait(1).stdout == "abc"
        assert process.wait(1).status == 42
        header = theirs.recv(agent.HEADER.size)
        length, number, kind = agent.HEADER.unpack(header)
        assert (number, kind) == (1, agent.START)
        assert json.loads(theirs.recv(length)) == {"argv": ["x"], "terminal": None}


def test_the_agent_binds_drivers_in_the_order_of_the_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that looks like the kernel's, and what is written there. One driver registers its interface late."""
    aliases = {"0000:02:00.0": "pci:b", "0000:01:00.0": "pci:a", "0000:00:1f.0": "pci:c"}
    for name, alias in aliases.items():
        (tmp_path / "devices" / name).mkdir(parents=True)
        (tmp_path / "devices" / name / "modalias").write_text(alias + "\n")
        (tmp_path / "devices" / name / "class").write_text("0x050000\n" if alias == "pci:a" else "0x020000\n")
    (tmp_path / "devices/0000:00:1f.0/driver").mkdir()
    done: list[tuple[str, ...]] = []
    late = tmp_path / "devices/0000:02:00.0"

    def write(path: str, text: str) -> None:
        done.append((Path(path).name, text))
        if done[-1] == ("drivers_probe", late.name):
            (late / "driver").mkdir()

    def sleep(_seconds: float) -> None:
        done.append(("sleep",))
        (late / "net").mkdir()

    monkeypatch.setattr(agent, "write", write)
    monkeypatch.setattr(agent, "sleep", sleep)
    monkeypatch.setattr(subprocess, "run", lambda command: done.append(tuple(command)))
    agent.coldplug(str(tmp_path))
    assert done == [
        ("drivers_autoprobe", "0"),
        ("rescan", "1"),
        ("remove", "1"),
        ("rescan", "1"),
        ("modprobe", "-qab", "pci:a", "pci:b"),
        ("drivers_probe", "0000:01:00.0"),
        ("drivers_probe", "0000:02:00.0"),
        ("drivers_autoprobe", "1"),
        ("sleep",),
    ]
