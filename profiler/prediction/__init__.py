"""From block latencies to whole-network latency."""
