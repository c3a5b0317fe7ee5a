"""Comparison of this package with other frameworks, run from a checkout: `python -m bench --help`.

`refimpl.bench` holds cases, oracle, timing and our own candidates and is installed with the package;
here are the peers, all of them optional, the large grids, and the README's tables and figure.
"""
