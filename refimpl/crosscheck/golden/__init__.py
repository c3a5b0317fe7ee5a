"""Golden files: computations with their expected outputs, to check other implementations against.

`case.py` defines a case. `levels/` says what each level computes and how its arrays are named, makes its
cases and computes them with this package; `subject.py` is the network that a case is made of, the package's
or a user's; `ours.py` checks and computes any case. `file.py` writes and reads the file. `compare.py`, one
folder up, compares another program's outputs with it.
"""
