"""The paper's lemmas, theorem and rates, each checked numerically, with both sides shown.

The list says what is checked, in which form, and where that form comes from. *Verified*: a known statement,
tested as it stands. *Derived*: our own constants or form, proven in mathematics.md or in the module named.
*Reconstructed*: the idea is the paper's, the exact wording is our reading of it.

gap (`refimpl theory gap`; `gap`, `lemmas.stationarity_rows`, `lemmas.closed_form_rows`)
    * Lemma 2, "the gradient mapping vanishes iff the point is first-order stationary": as two inequalities,
      ||G_b(v)|| <= dist(0, grad F(v) + dh(v)), and dist at the prox point <= (1 + b Lip) ||G_b(v)||;
      both are zero at a solution. Derived.
    * Exact and surrogate gap are two quantities; the exact one has an error bar from the strong
      convexity of the local problems. Solvers against closed forms to 1e-12. Verified.

lemmas (`refimpl theory lemmas`; `lemmas`)
    * Envelope gradient: grad F(v) = lam (v - mean w_i*(v)), against differences of F. Verified.
    * Lemma 1, "F is smooth with constant lam L/(lam + L)": curvature of F lies in
      [-lam C/(lam - C), lam L/(lam + L)] when that of every L_i lies in [-C, L]. Derived. **The constant
      as printed holds for convex losses and for the upper curvature; it is not a Lipschitz constant of
      grad F in general**: L_i(w) = -L ||w||^2/2 has lam L/(lam - L), and a row shows it.
    * Lemma 3, inexact local solutions: ||g - grad F(md)|| <= lam/(lam - L) mean residual, attained at
      L_i(w) = -L ||w||^2/2; local steps of size 1/lam contract by L/lam, attained at both signs.
      Reconstructed; constant derived.

theorem (`refimpl theory theorem`; `theorem`, `run`)
    * Theorem 1: the telescoped bound with all terms measured along a run of the shipped method, and its
      consequence for min_k ||G~_k||^2; each inequality of its proof at every round: middle point,
      error of g_k, (i) descent, (ii) lower curvature, (iii) both prox steps, (iv) their sum. Derived, after
      Ghadimi & Lan 2016. **It needs the upper curvature lam L/(lam + L) only, not a Lipschitz constant**, so
      steps chosen by the printed constant of Lemma 1 are covered after all.
    * An eps-stationary point in O(1/eps) rounds: the same corollary. Derived.

rates (`refimpl theory rates`; `rates`)
    * Slope of log min_{j<=k} ||G_j||^2 against log k: at most -1 in general, about -3 for convex F, with
      allowance 0.05 and 0.5. Measured; a slope on chosen problems supports a rate, it does not prove it.
    * Floor of ||G||^2 after s local steps: falls by (L/lam)^2 per step within 20 %, and equals the closed
      form for quadratics. Derived.

sweep (`refimpl theory sweep`; `sweeps`)
    * The same lemmas and inequalities for lam/L from 1.05 to 30 and for nodes that differ more and more;
      rounds to a given gap against the bound; the floor for several lam/L, and over the spread of the
      nodes, where it grows like the fourth power. Derived.

Families: quadratics, least squares with group lasso, logistic regression on the embedded digits, separable
cosines (not convex, with and without a bounded group lasso), an indefinite quadratic in a box, the two
attained instances, and for the envelope gradient a small gated network in soft mode, whose L is estimated.

`run_all()` (`refimpl theory all`) returns every row: statement, family, left, right, slack, verdict (it is
"unchecked" if a side is NaN or infinite); `check_problem` returns those of your own problem; `curves` has
the numbers behind the figures. For training runs, whose networks have no proven constants, `measured`
estimates the gap (`refimpl theory gap RUN`).

Source: mathematics.md §7 and §8; Lin et al. 2020, Lemmas 1-3 and Theorem 1.
"""

from refimpl.theory.rows import HOLDS, UNCHECKED, VIOLATED, Row, Summary, all_hold, count, summarise
from refimpl.theory.suite import SECTIONS, check_problem, run_all, run_section

__all__ = [
    "HOLDS",
    "SECTIONS",
    "UNCHECKED",
    "VIOLATED",
    "Row",
    "Summary",
    "all_hold",
    "check_problem",
    "count",
    "run_all",
    "run_section",
    "summarise",
]
