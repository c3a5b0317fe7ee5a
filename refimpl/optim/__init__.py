"""Optimisation: proximal operators (`prox/`) and accelerated proximal gradient steps (`accel.py`)."""
