"""Prediction of end-to-end latency from block latencies."""
