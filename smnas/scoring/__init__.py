"""What a candidate is worth: its accuracy by training it, its latency from the table."""
