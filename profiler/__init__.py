"""Latency profiling of any ``nn.Module``: export, backends, timing, devices, the latency table, prediction.

Knows modules and input shapes, nothing of object detection. Importing the package itself stays light: torch is loaded
by the submodules that need it.
"""
