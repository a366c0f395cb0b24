"""A device's memory as a program on the host sees it."""

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from nicmodel.vm.device_memory import DeviceMemory
from nicmodel.vm.errors import VmError

SIZE = 1 << 20


def test_it_is_the_file() -> None:
    """What is written at one end is seen at the other, both ways, under the name that a NIC's server tells it by."""
    memory = DeviceMemory.create("hbm", SIZE)
    assert os.readlink(memory.path).startswith("/memfd:hbm")
    other = mmap.mmap(memory.fd, SIZE)
    other[4096:4100] = b"\1\2\3\4"
    assert memory.array.shape == (SIZE,)
    assert memory.array[4096:4100].tolist() == [1, 2, 3, 4]
    memory.array[:] += 1
    assert other[4094:4102] == b"\1\1\2\3\4\5\1\1"
    memory.close()
    assert memory.array.sum() == SIZE + 10


def test_numbers_in_it() -> None:
    memory = DeviceMemory.create("hbm", SIZE)
    memory.view("<f4", offset=8, count=3)[:] = 0.5, 1.5, 2.5
    assert memory.view("<f4").shape == (SIZE // 4,)
    assert memory.view("<f4", offset=4, count=5).tolist() == [0, 0.5, 1.5, 2.5, 0]
    assert memory.view("<u8", offset=4).size == SIZE // 8 - 1
    with pytest.raises(ValueError):
        memory.view("<f4", offset=SIZE - 8, count=3)


def test_memory_of_a_guest_that_somebody_else_has_started(tmp_path: Path) -> None:
    """QEMU's memory-backend-file, or this object in another process."""
    file = tmp_path / "hbm"
    file.write_bytes(bytes(SIZE))
    one, two = DeviceMemory.open(file), DeviceMemory.open(file)
    three = DeviceMemory.open(two.path)
    one.array[5] = 7
    assert two.array[5] == three.array[5] == 7
    with pytest.raises(FileNotFoundError):
        DeviceMemory.open(tmp_path / "none")


def test_options_of_the_tools() -> None:
    memory = DeviceMemory.create("hbm", SIZE)
    memory.node = 2
    assert memory.options == "--node 2"
    memory.device = "/dev/bar_dmabuf/0000:03:00.0"
    assert memory.options == "--device /dev/bar_dmabuf/0000:03:00.0"


def test_a_tensor_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    memory = DeviceMemory.create("hbm", SIZE)
    tensor = memory.tensor()
    assert tensor.dtype is torch.uint8 and tensor.data_ptr() == memory.array.ctypes.data
    memory.view("<f4", count=3)[:] = 1, 2, 3
    floats = tensor[:12].view(torch.float32)
    assert floats.sum().item() == 6
    floats *= 2
    assert memory.view("<f4", count=3).tolist() == [2, 4, 6]


def test_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(VmError, match="PyTorch is not installed here"):
        DeviceMemory.create("hbm", SIZE).tensor()


def test_a_fake_torch_gets_the_memory_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not there is a PyTorch here: it is handed the array, whose address is the mapping's."""

    class Torch:
        from_numpy = staticmethod(lambda array: array)

    monkeypatch.setitem(sys.modules, "torch", Torch)
    memory = DeviceMemory.create("hbm", SIZE)
    tensor = memory.tensor()
    assert ctypes.addressof(ctypes.c_char.from_buffer(tensor)) == memory.array.ctypes.data
    assert np.shares_memory(tensor, memory.array)
