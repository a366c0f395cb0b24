"""Fuzz targets: ``python -m tests.device.fuzz --help``. A few seconds of each are in ``tests/device/test_fuzz.py``."""
