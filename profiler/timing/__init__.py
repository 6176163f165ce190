"""Time a callable, and record the conditions it was timed under."""
