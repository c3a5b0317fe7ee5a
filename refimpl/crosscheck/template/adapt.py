"""Adaptation at a target node: stage I moves the gates, stage II the backbone."""

from refimpl.crosscheck.template.head import Arrays, computes, named, vector
from refimpl.crosscheck.template.numpy_network import logits_of, loss_and_gradient


@computes("adapt")
def adapt(given: Arrays, settings: Arrays) -> Arrays:
    """The logits before and after, and the vector behind each stage. Masks have no noise."""
    w = vector(named(given, "param."), settings)
    split, found = settings["backbone_size"], {"before.logits": logits_of(w, given["x_test"], settings)}
    for stage, part, eta in (
        (1, slice(split, len(w)), settings["eta_phi"]),
        (2, slice(0, split), settings["eta_theta"]),
    ):
        start = w
        for _ in range(settings["steps"]):
            _, gradient = loss_and_gradient(w, given["x"], given["labels"], {}, settings, stage == 1)
            pull, w = settings["lam"] * (w - start), w.copy()
            w[part] -= eta * (gradient + pull)[part]
        found[f"stage{stage}.w"] = w
    return found | {"after.logits": logits_of(w, given["x_test"], settings)}
