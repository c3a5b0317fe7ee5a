"""The measurement of rounds of many nodes, with few of them."""

from __future__ import annotations

import sys

import pytest

from bench.many_nodes import measure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_many_nodes_are_measured():
    found = measure("digits", None, 40, 1)
    assert found["images_mb"] == 40 * 7 * 64 * 4 / 2**20
    assert all(value >= 0 for value in found.values())
    assert found["above_mb"] < 100
