"""The search space: architectures as values, presets, sampling, mutation and encoding. Imports no torch."""
