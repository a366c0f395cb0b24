"""A network namespace for one test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nicmodel.vm.errors import VmError
from nicmodel.vm.host import program
from nicmodel.vm.namespace import Namespace


def own_namespace() -> Iterator[Namespace]:
    """What a fixture yields; without the right to have one, or `ip`, the test is skipped."""
    try:
        program("ip")
    except VmError as error:
        pytest.skip(str(error))
    try:
        namespace = Namespace()
    except OSError as error:
        pytest.skip(f"no network namespace of one's own: {error}")
    yield namespace
    namespace.close()
