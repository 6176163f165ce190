"""Detectors of a space with shared weights."""
