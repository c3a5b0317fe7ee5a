"""Rounds, adaptations and inferences in JAX, each in the fewest jitted calls that are fast.

A round of the two-layer network is one call: it scans over a node's steps (`lax.scan`), and nodes come one
after the other (`lax.map`) or at once (`vmap`); both are candidates.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bench.peers.jax_net import Params, from_jax, loss_and_gradient, run_layers, to_images, to_jax
from refimpl.bench.candidates import Candidate
from refimpl.bench.endtoend import round_arrays
from refimpl.bench.programs import RHO, Adaptation, Inference, Program, Round


def shrink_gates(program: Round, params: Params, step: float) -> Params:
    """prox of the group lasso: a group is a channel's two rows of A2 and two entries of b2."""
    out = dict(params)
    for block in program.model.network.gates:
        names = [f"{block.gate.name}.fc2.{part}" for part in ("weight", "bias")]
        parts = [params[name].reshape(block.gate.out_channels, -1) for name in names]
        size = sum(part.shape[1] for part in parts)
        norms = jnp.sqrt(sum((part**2).sum(1) for part in parts))
        scale = jnp.maximum(0, 1 - step * RHO * size**0.5 / norms)[:, None]
        for name, part in zip(names, parts, strict=True):
            out[name] = (part * scale).reshape(params[name].shape)
    return out


def round_(program: Round, style: str) -> Candidate:
    """One round; style: `scan` and `vmap` compile it whole, `unrolled` compiles a node's local solve.

    Convolutions inside a loop of XLA's run some fifty times slower on a CPU than outside: with `unrolled`
    the steps are written out and Python calls the nodes one by one, without waiting for them.
    """
    network, w = program.model.network, program.model.parameters()
    x, y = program.data()
    centre, x, y = to_jax(network, w), to_images(x), jnp.asarray(y, jnp.int32)
    batches = jnp.asarray(program.batches(), jnp.int32)

    def local(centre: Params, x: jax.Array, y: jax.Array, batches: jax.Array):
        def step(w: Params, chosen: jax.Array):
            batch = (x, y) if program.full else (x[chosen], y[chosen])
            loss, g = loss_and_gradient(network, w, *batch, program.train)
            new = {key: w[key] - program.eta * (g[key] + program.lam * (w[key] - centre[key])) for key in g}
            return {**w, **new}, loss

        if style != "unrolled":
            end, losses = lax.scan(step, centre, batches)
            return end, losses[0]
        end, losses = centre, []
        for chosen in batches:
            end, loss = step(end, chosen)
            losses.append(loss)
        return end, losses[0]

    def serve(centre: Params, means: Params):
        g = {key: program.lam * (centre[key] - mean) for key, mean in means.items()}
        sizes = 0.5 * program.beta, program.beta
        return [
            shrink_gates(program, {key: centre[key] - size * g[key] for key in g}, size) for size in sizes
        ]

    def whole(centre: Params, x: jax.Array, y: jax.Array, batches: jax.Array):
        if style == "vmap":
            ends, losses = jax.vmap(partial(local, centre))(x, y, batches)
        else:
            ends, losses = lax.map(lambda node: local(centre, *node), (x, y, batches))
        return losses.mean(), *serve(centre, {key: end.mean(0) for key, end in ends.items()})

    def gathered(centre: Params, ends: list[Params], losses: list[jax.Array]):
        means = {key: sum(end[key] for end in ends) / len(ends) for key in centre}
        return sum(losses) / len(losses), *serve(centre, means)

    solve, finish, play = jax.jit(local), jax.jit(gathered), jax.jit(whole)
    nodes = list(zip(list(x), list(y), list(batches), strict=True))

    def run():
        if style != "unrolled":
            return jax.block_until_ready(play(centre, x, y, batches))
        ends, losses = zip(*(solve(centre, *node) for node in nodes), strict=True)
        return jax.block_until_ready(finish(centre, list(ends), list(losses)))

    def arrays(result):
        loss, new_x, ag = result
        return round_arrays(float(loss), w, from_jax(network, new_x), from_jax(network, ag))

    return Candidate(f"jax jit, {style}", run, arrays)


def adaptation(program: Adaptation) -> Candidate:
    """Both stages as one compiled program."""
    network, w = program.model.network, program.model.parameters()
    x, y = program.model.samples(program.support)
    arguments = to_jax(network, w), to_images(x), jnp.asarray(y, jnp.int32)

    @jax.jit
    def play(params: Params, x: jax.Array, y: jax.Array) -> Params:
        for part in ("phi", "theta"):
            _, g = loss_and_gradient(network, params, x, y, (part,))
            params = {**params, **{key: params[key] - program.eta * g[key] for key in g}}
        return params

    return Candidate(
        "jax jit",
        lambda: jax.block_until_ready(play(*arguments)),
        lambda params: {"moved": from_jax(network, params) - w},
    )


def inference(program: Inference) -> Candidate:
    """Logits."""
    network = program.model.network
    arguments = (
        to_jax(network, program.model.parameters()),
        to_images(program.model.samples(program.batch)[0]),
    )
    play = jax.jit(lambda params, x: run_layers(network.layers, params, x, False))
    return Candidate(
        "jax jit",
        lambda: jax.block_until_ready(play(*arguments)),
        lambda logits: {"logits": np.asarray(logits)},
    )


def make(program: Program, threads: int) -> Candidate | None:
    """Any program; JAX takes its number of threads from the cores the process may use."""
    if isinstance(program, Round):
        return round_(program, "scan" if program.model.kind == "mlp" else "unrolled")
    return adaptation(program) if isinstance(program, Adaptation) else inference(program)


def make_together(program: Program, threads: int) -> Candidate | None:
    """Rounds of the two-layer network, all nodes at once."""
    if not isinstance(program, Round) or program.model.kind != "mlp":
        return None
    return round_(program, "vmap")


PROGRAMS = (make, make_together)
