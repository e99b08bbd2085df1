"""Ctrl-C at random moments: `worker` is the program that is interrupted, `program` does it and judges."""
