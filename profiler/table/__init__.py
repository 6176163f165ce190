"""The latency table: schema, rows, merge, comparison, validation, export."""
