"""The arithmetic: pure compiled functions over arrays, without randomness, which write their last arguments.

This is the only room that imports Numba. `conv`, `linear`, `pool`, `norm`, `activation`, `loss` and
`vector` hold the functions the rest of the package calls, which check their arguments (`checked`); `groups`
relies on its callers, the proximal operators; `plain` holds readable twins of conv and linear, against which
these are tested. All of them release the GIL and use one thread: the rounds of `refimpl.federated` compute
several nodes at a time instead.

Threads keep working memory between calls, up to a bound; `workspace.release_workspaces()` frees it.
"""
