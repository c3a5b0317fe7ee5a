"""A ready Python file that computes a level of golden files without this package, to be replaced by parts.

The modules of this folder are its parts. None of them imports anything of the package but other parts, and
`text` puts those of a level together: `head` reads and writes files; `numpy_layers` with `numpy_network`, or
`torch_network`, compute layers, networks and gradients; the others, all in NumPy, compute one level each.
The bridge to PyTorch (`bridges/torch`) computes with the same parts, as one `module`.
"""

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from types import ModuleType

from refimpl.errors import one_of

NETWORK = {"numpy": ("numpy_layers", "numpy_network"), "torch": ("torch_network",)}
# The parts of a level beside `head` and those for networks.
PARTS: dict[str, tuple[str, ...]] = {
    "ops": ("shaping",),
    "networks": (),
    "prox": ("prox",),
    "local": ("local",),
    "algorithm": ("prox", "local", "algorithm"),
    "adapt": ("local", "adapt"),
    "baselines": ("local", "baselines"),
}
_ABOUT = '''"""Compute a golden file of the level {level} in {words}, without refimpl.

Replace its functions by calls of your own implementation, piece by piece, and after each run

    refimpl golden make --level {level} --out golden.npz
    python THIS_FILE.py golden.npz theirs.npz
    refimpl golden check golden.npz theirs.npz --partial

A function may return fewer arrays than the file asks for; --partial allows that. This command explains the
inputs, settings and outputs: python -m pydoc refimpl.crosscheck.golden.levels.{level}
"""
'''
_WORDS = {"numpy": "plain NumPy", "torch": "PyTorch"}
_INSIDE = re.compile(r"^from refimpl\S* import (?:\([^)]*\)|[^\n]*)\n", flags=re.M)
_IMPORT = re.compile(r"^(?:import|from) [^\n]*\n", flags=re.M)
_TITLE = re.compile(r'\A"""(.*?)\.?"""\n', flags=re.S)


def text(level: str, using: str = "numpy") -> str:
    """The file for a level, which computes networks with `numpy` or with `torch`."""
    one_of("golden template", "level", level, tuple(PARTS))
    one_of("golden template", "library", using, tuple(NETWORK))
    network = () if level == "prox" else NETWORK[using]
    about = _ABOUT.format(level=level, words=_WORDS[using])
    return "\n".join((about, _together(("head", *network, *PARTS[level])), "", _END))


@cache
def module(using: str) -> ModuleType:
    """All parts as one module, which computes networks with `numpy` or with `torch`."""
    parts = dict.fromkeys(part for level in PARTS.values() for part in level)
    made = ModuleType(f"{__name__}.{using}")
    exec(compile(_together(("head", *NETWORK[using], *parts)), made.__name__, "exec"), made.__dict__)
    return made


def _together(parts: Iterable[str]) -> str:
    """The source of some parts as one, with imports of other modules only."""
    imports, bodies = {"import sys\n"}, []
    for part in parts:
        source = _INSIDE.sub("", resources.files(__package__).joinpath(f"{part}.py").read_text("utf-8"))
        imports.update(_IMPORT.findall(source))
        bodies.append(_TITLE.sub(r"# --- \1\n", _IMPORT.sub("", source)).strip())
    return "\n".join((_merged(imports), "\n\n".join(f"\n{body}" for body in bodies)))


def _merged(imports: Iterable[str]) -> str:
    """The import lines of all parts, each module once: whole modules, then names from modules."""
    modules, names = set(), dict[str, set[str]]()
    for line in imports:
        module, _, listed = line.removeprefix("from ").strip().partition(" import ")
        if listed:
            names.setdefault(module, set()).update(listed.split(", "))
        else:
            modules.add(line)
    chosen = [f"from {module} import {', '.join(sorted(names[module]))}\n" for module in sorted(names)]
    return "".join([*sorted(modules), *chosen])


_END = """
if __name__ == "__main__":
    main(*sys.argv[1:])
"""
