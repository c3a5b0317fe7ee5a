"""The command line: parses, calls the library, prints. No arithmetic lives here."""

from refimpl.cli.app import main

__all__ = ["main"]
