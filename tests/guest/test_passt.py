"""passt between a guest and the host, with QEMU's own virtio-net as the NIC."""

import socket
import subprocess
import sys
import threading

import pytest

from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.passt import Passt

pytestmark = pytest.mark.guest


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def serve_once(server: socket.socket, answer: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(connection.recv(100) + answer)


@pytest.mark.long
def test_both_directions() -> None:
    """The guest reaches a server on the host's loopback, and the host one in the guest, by DHCP's addresses."""
    port = free_port()
    with Passt({port: 5001}) as passt, socket.create_server(("127.0.0.1", 0)) as server:
        netdev = f"stream,id=n0,server=off,addr.type=unix,addr.path={passt.socket}"
        config = GuestConfig(arguments=("-netdev", netdev, "-device", "virtio-net-pci,netdev=n0"))
        with Guest(config) as guest:
            guest.run("ip link set eth0 up && udhcpc -i eth0 -n -q -s /bin/true")
            guest.run(f"ip addr add {passt.address}/24 dev eth0")
            threading.Thread(target=serve_once, args=(server, b" world")).start()
            host_port = server.getsockname()[1]
            said = guest.run(f"socat -t 5 - TCP:{passt.gateway}:{host_port}", input=b"hello").stdout
            assert said == "hello world"
            echo = guest.start("socat TCP-LISTEN:5001 EXEC:cat")
            guest.run("until ss -ltn | grep -q :5001; do sleep 0.1; done")
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(b"ping")
                assert connection.recv(4) == b"ping"
            assert echo.wait(120).status == 0


def test_it_does_not_outlive_the_process_that_started_it() -> None:
    program = (
        "import os, signal, sys\n"
        "from nicmodel.vm.passt import Passt\n"
        "passt = Passt(); passt.__enter__(); print(passt.socket, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    path = run.stdout.strip()
    assert path.endswith("passt.sock")
    for _ in range(50):
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(path)
            except (ConnectionRefusedError, FileNotFoundError):
                return
        threading.Event().wait(0.1)
    pytest.fail("passt still listens")


def test_passts_own_words_reach_the_user() -> None:
    with pytest.raises(VmError, match=r"(?s)passt did not start: .*nonsense"), Passt(address="nonsense"):
        pass
