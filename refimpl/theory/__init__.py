"""The paper's lemmas, theorem and rates, each checked numerically, with both sides shown.

README.md in this folder lists the statements and says how we have each of them: verified, derived or
reconstructed. Every module says where its formulas come from. The families of problems are quadratics, least
squares with group lasso, logistic regression on the embedded digits, separable cosines (not convex, with and
without a bounded group lasso), an indefinite quadratic in a box, the two problems on which the lemmas are
equalities, and, for the envelope gradient, a small gated network in soft mode, whose L is estimated.

`run_all()` (`refimpl theory all`) returns a row for every statement and family: left, right, slack, verdict
(it is "unchecked" if a side is NaN or infinite). `check_problem` returns those of your own problem, and
`follow` runs the method on it and shows by round what the theory says (`refimpl theory follow`). `rates`
and `sweeps` have the numbers behind the figures. For training runs, whose networks have no proven constants,
`measured` estimates the gap (`refimpl theory gap RUN`).

Source: mathematics.md §7 and §8; Lin et al. 2020, Lemmas 1-3 and Theorem 1.
"""

from refimpl.theory.following import FollowedRound, Following, follow
from refimpl.theory.problems import Problem
from refimpl.theory.rows import HOLDS, UNCHECKED, VIOLATED, Row, Summary, all_hold, count, summarise
from refimpl.theory.suite import SECTIONS, check_problem, run_all, run_section

__all__ = [
    "HOLDS",
    "SECTIONS",
    "UNCHECKED",
    "VIOLATED",
    "FollowedRound",
    "Following",
    "Problem",
    "Row",
    "Summary",
    "all_hold",
    "check_problem",
    "count",
    "follow",
    "run_all",
    "run_section",
    "summarise",
]
