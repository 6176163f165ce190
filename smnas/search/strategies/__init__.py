"""How candidates are proposed."""
