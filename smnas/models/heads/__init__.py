"""Region proposals and detection heads."""
