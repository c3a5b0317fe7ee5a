"""The paper's lemmas, theorem and rates, checked numerically."""

from refimpl.theory.rows import Row, all_hold
from refimpl.theory.suite import SECTIONS, run_all, run_section

__all__ = ["SECTIONS", "Row", "all_hold", "run_all", "run_section"]
