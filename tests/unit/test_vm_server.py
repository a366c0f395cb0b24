"""`NicServer` without a NIC."""

from __future__ import annotations

import pytest

from nicmodel.vm.errors import VmError
from nicmodel.vm.server import NicServer


def test_a_server_that_does_not_start_says_why() -> None:
    """Its last words may come when it has ended already."""
    with pytest.raises(VmError, match="repeat --wire for each --socket"), NicServer(["--wire", "none"], sockets=2):
        pass
