"""Backbone families: one module each, with everything about a family that needs no torch."""
