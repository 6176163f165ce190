"""Training a detector from scratch: recipes, the learning rate's schedule, the loop, checkpoints and resuming."""
