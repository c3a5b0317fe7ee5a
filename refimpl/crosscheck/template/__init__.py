"""A ready Python file that computes a level of golden files without this package, to be replaced by parts.

The modules of this folder are its parts. None of them imports anything of the package but other parts, and
`text` puts those of a level together: `head` reads and writes files; `numpy_layers` with `numpy_network`, or
`torch_network`, compute layers, networks and gradients; the others, all in NumPy, compute one level each.
"""

import re
from collections.abc import Iterable
from importlib import resources

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
    imports = {"import sys\n"}
    bodies = []
    for part in ("head", *network, *PARTS[level]):
        source = _INSIDE.sub("", resources.files(__package__).joinpath(f"{part}.py").read_text("utf-8"))
        imports.update(_IMPORT.findall(source))
        bodies.append(_TITLE.sub(r"# --- \1\n", _IMPORT.sub("", source)).strip())
    about = _ABOUT.format(level=level, words=_WORDS[using])
    return "\n".join((about, _merged(imports), "\n\n".join(f"\n{body}" for body in bodies), "", _END))


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
