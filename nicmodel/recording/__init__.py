"""Recordings: all that has reached a NIC from outside, and what it made of it, to be run again without a guest."""
