"""First-order MAML with Conv-4 in plain PyTorch, with the statistics of the batch everywhere.

Layers, gradients, inner steps and Adam are PyTorch's; the episodes and the first weights are ours.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.crosscheck.bridges.torch.weights import Tensors, tensor, views
from refimpl.data.node import Node, Samples
from refimpl.fewshot.experiment import FewShot
from refimpl.nn.layout import Layout

TOLD = 100  # iterations between lines of progress


def logits(p: Tensors, x: Tensor) -> Tensor:
    """Conv-4's logits."""
    for name in ("conv1", "conv2", "conv3", "conv4"):
        x = F.conv2d(x, p[f"{name}.weight"], padding=1)
        x = F.batch_norm(x, None, None, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"], training=True)
        x = F.max_pool2d(F.relu(x), 2)
    return F.linear(x.flatten(1), p["fc.weight"], p["fc.bias"])


def named(layout: Layout, w: Tensor) -> Tensors:
    """The parameters by name, as parts of w (d,)."""
    return views({slot.name: slot.shape for slot in layout.slots}, w)


def gradient(layout: Layout, w: Tensor, samples: Samples) -> tuple[float, Tensor]:
    """The mean cross-entropy of the samples, and its gradient at w (d,)."""
    point = w.detach().requires_grad_()
    loss = F.cross_entropy(logits(named(layout, point), tensor(samples.x)), tensor(samples.y))
    (g,) = torch.autograd.grad(loss, point)
    return loss.item(), g


def adapt(layout: Layout, w: Tensor, support: Samples, alpha: float, steps: int) -> Tensor:
    """The weights after that many inner steps on the support samples."""
    for _ in range(steps):
        w = w.detach() - alpha * gradient(layout, w, support)[1]
    return w


def train(run: FewShot) -> tuple[Tensor, list[float]]:
    """The meta-model, and the mean loss of the query samples in every iteration; one thread."""
    torch.set_num_threads(1)
    config, layout, w, losses = run.config, run.network.layout, tensor(run.start()["w"]), []
    optimiser = torch.optim.Adam([w], lr=config.eta)
    for iteration in range(1, config.rounds + 1):
        answers = []
        for node in (task.node for task in run.tasks(iteration)):
            adapted = adapt(layout, w, node.support, config.alpha, config.inner_steps)
            answers.append(gradient(layout, adapted, node.query))
        w.grad = torch.stack([g for _, g in answers]).mean(0)
        optimiser.step()
        losses.append(sum(loss for loss, _ in answers) / len(answers))
        if iteration % TOLD == 0:
            print(f"PyTorch, iteration {iteration}, loss {losses[-1]:.4f}", flush=True)
    return w, losses


def test(run: FewShot, w: Tensor) -> np.ndarray:
    """The accuracy in each test episode."""
    asked, layout = run.test(), run.network.layout
    nodes = (task.node for task in asked.tasks)
    return np.array([_accuracy(layout, w, node, asked.learner.alpha, asked.steps) for node in nodes])


def _accuracy(layout: Layout, w: Tensor, node: Node, alpha: float, steps: int) -> float:
    """The share of the episode's test samples that is classified rightly after adaptation."""
    adapted = named(layout, adapt(layout, w, node.support, alpha, steps))
    with torch.no_grad():
        found = logits(adapted, tensor(node.test.x)).argmax(1)
    return float((found == tensor(node.test.y)).double().mean())
