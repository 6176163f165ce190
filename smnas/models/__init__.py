"""Detectors: ``nn.Module`` objects built from an architecture as named steps, which are also profiled."""
