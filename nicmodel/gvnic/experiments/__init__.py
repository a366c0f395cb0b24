"""Questions of reviewers, as experiments with this device and a driver that knows its options.

Time is virtual where a question is about the device: how long a host takes to answer, and how fast frames come, are
parameters then, and a busy machine does not change the result. A guest is there only as a peer, in `ddp_guest`.
"""
