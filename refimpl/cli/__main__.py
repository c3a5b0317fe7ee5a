"""`python -m refimpl.cli`: the same as `python -m refimpl`, which is the newer name."""

import refimpl.__main__  # noqa: F401 - importing it starts the command line
