"""Golden files: computations with their expected outputs, to check other implementations against.

`case.py` defines a case, and `levels/` says what each level computes and how its arrays are named. `ours/`
computes cases with this package. `file.py` writes and reads the file. `compare.py`, one folder up, compares
another program's outputs with it.
"""
