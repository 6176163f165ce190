"""The terminal: console, options, progress, exit codes."""
