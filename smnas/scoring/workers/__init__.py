"""Where scorers run: this process, worker processes, a Ray cluster."""
