"""Latency of detectors: blocks as workloads, measured tables, end-to-end predictions, audits."""
