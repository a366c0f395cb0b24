"""Faults of a gVNIC: those of its admin queue, and what the faults of any NIC do where its rings are written."""
