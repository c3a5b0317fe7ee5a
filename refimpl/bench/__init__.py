"""Measure how many seconds skipping channels saves: every candidate is checked, then timed.

This room holds what an installed package can run by itself: cases, the float64 oracle, interleaved
timing, machine peaks, this package's kernels and programs, and NumPy as a baseline. The comparison with
other frameworks (top-level `bench/`, not installed) adds candidates to the same cases. `time_layer` and
`time_network` time a layer and a network of one's own (`refimpl bench layer`, `refimpl bench network`).
"""

from refimpl.bench.cases import Geometry, linear
from refimpl.bench.own import Timings, time_layer, time_network

__all__ = ["Geometry", "Timings", "linear", "time_layer", "time_network"]
