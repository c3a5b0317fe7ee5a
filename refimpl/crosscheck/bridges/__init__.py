"""Bridges to other frameworks: a second implementation in PyTorch, and export to ONNX.

Each needs an extra (`torch`, `onnx`); nothing else in the package imports this room.
"""
