"""Guests: packages, image, QEMU, commands run inside."""
