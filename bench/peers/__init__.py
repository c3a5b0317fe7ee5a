"""Equivalent programs in other frameworks, each written to be as fast as its users would make it.

No peer is needed: `available` imports those that are installed.
"""

from __future__ import annotations

from importlib import import_module, util
from typing import NamedTuple

from refimpl.bench.candidates import Maker
from refimpl.bench.endtoend import ProgramMaker
from refimpl.bench.peaks import MatrixProduct

# What must be importable, and the modules that need it. Each offers some of LAYERS, PROGRAMS, PRODUCTS.
MODULES = {
    "torch": ("torch_layers", "torch_plain", "torch_tuned", "torch_batched"),
    "jax": ("jax_programs",),
    "onnxruntime": ("onnx_layers", "onnx_programs"),
}
NEEDS = {"onnxruntime": ("onnxruntime", "onnx")}


class Peers(NamedTuple):
    """Makers of candidates for layers and programs, and matrix products for the machine's peak."""

    layers: tuple[Maker, ...]
    programs: tuple[ProgramMaker, ...]
    products: tuple[MatrixProduct, ...]


def installed() -> list[str]:
    """The frameworks that can be imported."""
    return [
        name
        for name in MODULES
        if all(util.find_spec(needed) is not None for needed in NEEDS.get(name, (name,)))
    ]


def available(names: list[str], threads: int) -> Peers:
    """The candidates of the named frameworks, which are told to use `threads` threads."""
    if "torch" in names:
        import_module("torch").set_num_threads(threads)
    modules = [import_module(f"bench.peers.{module}") for name in names for module in MODULES[name]]
    return Peers(*(_offers(modules, kind) for kind in ("LAYERS", "PROGRAMS", "PRODUCTS")))


def _offers(modules: list, kind: str) -> tuple:
    return tuple(offer for module in modules for offer in getattr(module, kind, ()))
