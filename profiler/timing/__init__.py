"""Timing a callable, and the conditions it was timed under."""
