"""Backbones by family."""
