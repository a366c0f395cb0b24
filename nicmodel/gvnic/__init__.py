"""The device: registers, admin queue, descriptors, receive, transmit, steering."""
