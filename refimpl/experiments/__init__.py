"""Experiments: a configuration, one run and its folder, comparisons of many runs, and tuning."""
