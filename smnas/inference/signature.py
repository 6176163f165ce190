"""Names of the inputs and outputs of every detector file."""

__all__ = ["INPUT_NAME", "OUTPUT_NAMES"]

INPUT_NAME = "images"
OUTPUT_NAMES = ("num", "boxes", "scores", "labels")
