"""A driver in a guest's user space, as DPDK's are, by VFIO: it asks the NIC what it is, and leaves in disorder.

    python3 user_space_driver.py 0000:00:03.0

Prints the MAC address that the NIC has written to this process's memory.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import sys
import time

# linux/vfio.h
SET_IOMMU, SET_CONTAINER, GET_DEVICE_FD, GET_REGION_INFO, MAP_DMA = 0x3B66, 0x3B68, 0x3B6A, 0x3B6C, 0x3B71
TYPE1_V2 = 3
CONFIGURATION = 7
# gve_register.h and gve_adminq.h, all big-endian.
DRIVER_STATUS, DOORBELL, EVENTS, BASE_HIGH, BASE_LOW, LENGTH = 0x04, 0x14, 0x18, 0x20, 0x24, 0x28
RUN, DESCRIBE_DEVICE, PASSED = 1, 1, 1
MAC = 24  # where it is in struct gve_device_descriptor
PAGE = 4096
#: The same at every start, as a driver's usually is.
IOVA = 0x10000000


def main(address: str) -> None:
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    number = os.readlink(f"/sys/bus/pci/devices/{address}/iommu_group").rpartition("/")[2]
    group = os.open(f"/dev/vfio/{number}", os.O_RDWR)
    fcntl.ioctl(group, SET_CONTAINER, struct.pack("i", container))
    fcntl.ioctl(container, SET_IOMMU, TYPE1_V2)
    memory = mmap.mmap(-1, 512 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(container, MAP_DMA, struct.pack("=IIQQQ", 32, 3, start, IOVA, len(memory)))
    # With a bytearray it returns what the call does, the device's descriptor.
    device: int = fcntl.ioctl(group, GET_DEVICE_FD, bytearray(address.encode() + b"\0"))

    def region(index: int) -> int:
        asked = struct.pack("=IIIIQQ", 32, 0, index, 0, 0, 0)
        offset: int = struct.unpack("=IIIIQQ", fcntl.ioctl(device, GET_REGION_INFO, asked))[5]
        return offset

    registers = region(0)
    os.pwrite(device, struct.pack("<H", 6), region(CONFIGURATION) + 4)  # memory space and bus master
    for register, size, value in (
        (LENGTH, 2, PAGE),
        (BASE_HIGH, 4, IOVA >> 32),
        (BASE_LOW, 4, IOVA & 0xFFFFFFFF),
        (DRIVER_STATUS, 4, RUN),
    ):
        os.pwrite(device, value.to_bytes(size, "big"), registers + register)
    memory[:64] = struct.pack(">IIQII", DESCRIBE_DEVICE, 0, IOVA + PAGE, 1, PAGE).ljust(64, b"\0")
    os.pwrite(device, (1).to_bytes(4, "big"), registers + DOORBELL)
    deadline = time.monotonic() + 60
    while os.pread(device, 4, registers + EVENTS) != (1).to_bytes(4, "big"):
        assert time.monotonic() < deadline, "the NIC does not answer"
    status = int.from_bytes(memory[4:8], "big")
    assert status == PASSED, f"status {status:#x} in this process's memory"
    print(memory[PAGE + MAC : PAGE + MAC + 6].hex(":"), flush=True)
    os._exit(0)  # nothing is unmapped, and the NIC keeps its admin queue


main(sys.argv[1])
