"""Pruning at a target node: connection sensitivity, by weights and by channels."""
