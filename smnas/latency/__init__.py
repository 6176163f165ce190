"""Latency of detectors: their blocks as workloads, measured tables, whole-detector predictions, audits."""
