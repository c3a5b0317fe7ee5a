"""Names that reports need where onnxruntime is not installed."""

DENSE = "onnxruntime (no gates)"
