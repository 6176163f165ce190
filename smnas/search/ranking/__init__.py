"""From trials to a recommendation."""
