"""How far a driver of a gVNIC has come, and what the device waits for."""
