"""Values only: no I/O, no clock, no randomness.

Everything above may import this; it imports nothing of ours.
"""
