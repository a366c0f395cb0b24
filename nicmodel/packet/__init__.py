"""Compiled functions over the bytes of frames: parse, hash, checksum, segment."""
