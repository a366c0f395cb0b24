"""Deferred placement: payload stays in memory of the NIC's until the driver says where it goes. An option of this
model; what a driver has to do is in docs/options.md.

On a queue with the option a packet that is split at its header delivers the header at once, as always. Its payload is
kept in pages of the NIC's own memory, and the completion has a handle instead of payload. The driver then writes
placement requests: the handle and a list of addresses, or that the payload is to be dropped. A payload that nobody asks
for in time is dropped, so that a driver that forgets some does not use the memory up.
"""
