"""Pruning at a target node, of weights or of channels, by their connection sensitivity."""
