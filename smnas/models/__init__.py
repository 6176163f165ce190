"""Detectors: an architecture becomes an ``nn.Module`` made of named steps, which are also what the profiler times."""
