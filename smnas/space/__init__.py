"""What can be searched: architectures as values, the spaces they come from, and how they mutate. Needs no torch."""
