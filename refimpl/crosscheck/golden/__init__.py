"""Golden files: computations with their expected outputs, to check other implementations against.

`case.py` says what a case is, `levels/` what each level computes and how everything is called, `ours/`
computes cases with this package, `file.py` is the file, `compare.py` holds another's outputs against it.
"""
