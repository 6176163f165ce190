"""Engines on disk, and building them ahead of time."""
