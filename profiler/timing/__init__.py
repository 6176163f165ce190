"""Time a callable, and record the conditions it was timed under."""

DEFAULT_ROUNDS = 6
"""Rounds of a measurement. With half of the time disturbed, all six of independent rounds are in 1 of 64."""
