"""The arithmetic: pure compiled functions over arrays, outputs last, no allocation kept, no randomness.

This is the only room that imports Numba. `conv`, `linear`, `pool`, `norm`, `activation`, `loss` and
`vector` hold the functions the rest of the package calls, which check their arguments (`checked`); `groups`
trusts its callers, the proximal operators; `plain` holds the readable twins of conv and linear that serve as
oracle. All of them release the GIL and use one thread: the rounds of `refimpl.federated` compute several
nodes at a time instead.

Threads keep working memory between calls, up to a bound; `workspace.release_workspaces()` frees it.
"""
