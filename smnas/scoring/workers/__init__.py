"""Pools that run scorers: in this process, in worker processes, on a Ray cluster."""
