"""MAE-DET: backbones by maximum entropy within a latency."""
