"""The command line: parse, call the library, format. Every decision is open to library users too."""
