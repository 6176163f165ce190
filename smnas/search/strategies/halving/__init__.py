"""Successive halving over a Gaussian-process surrogate."""
