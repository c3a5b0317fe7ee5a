"""The machine: whether the kernels compute here what they should."""
