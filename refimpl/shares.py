"""Shares of a whole as whole numbers: every share that becomes a count does so here.

A share is taken as the decimal number that is written: 0.55 is 55/100, not the binary number next to it, and
the product is exact. So 0.55 of 100 is 55 however it is rounded.
"""

from __future__ import annotations

import math
from fractions import Fraction

Share = int | float | Fraction


def exact(share: Share) -> Fraction:
    """The share as it is written in decimals, as a fraction."""
    return Fraction(str(share))


def at_most(share: Share, whole: int | Fraction) -> int:
    """share of `whole`, rounded down."""
    return math.floor(exact(share) * whole)


def nearest(share: Share, whole: int | Fraction) -> int:
    """share of `whole`, rounded to the nearest whole number; halves go to the even one."""
    return round(exact(share) * whole)


def at_least(share: Share, whole: int | Fraction) -> int:
    """share of `whole`, rounded up."""
    return math.ceil(exact(share) * whole)
