"""Coverage of unmodified drivers: recorded by QEMU's emulator, told by functions, basic blocks and lines."""
