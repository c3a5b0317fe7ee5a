"""The two commands of the README's first screen, taken from the README so that they cannot drift.

`python tests/readme_commands.py demo|tests` prints one of them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def document(path: str) -> str:
    """The text of a document of this repository, by its path from the top."""
    return (ROOT / path).read_text(encoding="utf-8")


def readme_commands() -> dict[str, str]:
    """{"demo": ..., "tests": ...}: the first two shell blocks of the README."""
    blocks = re.findall(r"```sh\n(.*?)\n```", README.read_text(encoding="utf-8"), flags=re.S)
    demo, tests = blocks[:2]
    return {"demo": demo, "tests": tests}


if __name__ == "__main__":
    print(readme_commands()[sys.argv[1]])
