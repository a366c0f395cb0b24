"""A driver fuzzed through its device: dice say what the device does, and coverage of the driver what is worth keeping.

An input is a scenario (`nicmodel.faults.scenario`), so that whatever is found can be written down and played again.
"""
