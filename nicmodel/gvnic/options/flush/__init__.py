"""Flush of one queue: its buffers come back, and it stays. An option of this model; docs/options.md."""
