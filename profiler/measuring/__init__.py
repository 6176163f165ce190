"""Filling a latency table."""
