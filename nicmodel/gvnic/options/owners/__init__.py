"""Buffers of several owners in one receive queue: an option of this model. What a driver does: docs/options.md.

A buffer's descriptor says whose it is, and a flow rule whose buffers its frames go to. The NIC takes descriptors from
the ring ahead of need and sorts them into lists, one for each owner; a frame takes from its owner's list alone. While a
frame is delivered its owner's list stands in for the queue's ring (`exchange`), so that placement knows nothing of
owners but where a descriptor is.

How far the NIC looks ahead decides what a shared ring is worth: with one buffer at a time it is a plain ring whose tags
are obeyed, and an owner whose flows are silent blocks all others as soon as its buffer is the next.
"""
