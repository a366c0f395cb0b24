"""`NicServer`, the server as a process: it does not outlive the one that started it."""

import os
import select
import subprocess
import sys
from pathlib import Path


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    """*Steps*: a process starts a server, and kills itself. *Verify*: the server ends."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from nicmodel.vm.server import NicServer\n"
        "server = NicServer(folder=Path(sys.argv[1])); server.start(); print(server.pid, flush=True)\n"
        "sys.stdin.readline()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdin and starter.stdout
        server = os.pidfd_open(int(starter.stdout.readline()))
        assert select.select([server], [], [], 0) == ([], [], [])
        starter.stdin.close()
        starter.wait()
    assert select.select([server], [], [], 60)[0], "the server still runs"
    os.close(server)
