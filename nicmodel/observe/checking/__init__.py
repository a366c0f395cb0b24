"""The parts that the contract checkers of all NICs are made of. They report rules by name; what a rule says, why, and
where that is written down, each personality has in its own list.
"""
