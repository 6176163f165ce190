"""Operators worth a kernel of their own, each beside a plain PyTorch reference that is its specification.

Knows tensors only, neither modules nor detectors.
"""
