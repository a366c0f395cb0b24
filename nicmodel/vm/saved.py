"""Files that users give: read up to a bound, whatever they are."""

import json
from pathlib import Path
from typing import Any

from nicmodel.vm.errors import VmError

#: Bytes of a file of results, which have some hundred kilobytes.
LARGEST = 64 << 20


def read_bounded(path: Path, largest: int = LARGEST) -> bytes:
    """A file's content. What has no size of its own, such as a pipe or /dev/zero, has an end here as well.

    Raises:
        VmError: It cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise VmError(f"{path}: {error.strerror}") from None
    if len(content) > largest:
        raise VmError(f"{path} is larger than {largest:,} bytes")
    return content


def read_json(path: Path, complaint: str) -> Any:
    """A file's content as JSON has it.

    Args:
        path: The file.
        complaint: What follows its name in the message if it is none.

    Raises:
        VmError: It cannot be read, or is none.
    """
    content = read_bounded(path)
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError):
        raise VmError(f"{path} {complaint}") from None
