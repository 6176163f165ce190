"""The command line: parse, call the library, format. Nothing is decided here that a library user could not decide."""
