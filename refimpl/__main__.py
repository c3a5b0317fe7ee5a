"""`python -m refimpl`: the command line without an installed entry point."""

from refimpl.cli import main

main()
