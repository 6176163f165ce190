"""The two-stage search: which architectures to train, the study that remembers them, and the ranking at the end."""
