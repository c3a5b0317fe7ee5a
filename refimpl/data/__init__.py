"""Readers, the embedded digits, and the partition of a data set into nodes."""
