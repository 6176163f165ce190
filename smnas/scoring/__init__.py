"""Scores of candidates: AP by training, or training-free scores."""
