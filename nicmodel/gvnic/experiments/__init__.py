"""Questions of reviewers, as experiments with this device and a driver that knows its options, without a guest.

Time is virtual where a question is about the device: how long a host takes to answer, and how fast frames come, are
parameters then, and a busy machine does not change the result.
"""
