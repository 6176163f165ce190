"""A run folder to one self-contained HTML page that opens without a network."""
