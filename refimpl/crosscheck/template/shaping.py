"""Batch-shaping: the distribution of a gate's openings over a batch, and Beta(a, b)."""

import numpy as np
from scipy.special import beta, betainc, expit

from refimpl.crosscheck.template.head import Arrays, computes


@computes("gate_shaping")
def only_shaping(given: Arrays, settings: Arrays) -> Arrays:
    """The term of the loss by itself, and its gradient in the decisions."""
    d, tau, (weight, a, b) = given["d"], settings["tau"], settings["shaping"]
    ranks = d.argsort(0, kind="stable").argsort(0) + 1
    gaps = betainc(a, b, expit(d / tau)) - ranks / (len(d) + 1)
    rises = expit(d / tau) ** a * expit(-d / tau) ** b / beta(a, b) / tau
    return {"loss": weight * np.square(gaps).sum() / len(d), "grad.d": 2 * weight * gaps * rises / len(d)}
