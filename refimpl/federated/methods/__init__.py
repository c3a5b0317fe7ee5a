"""The federated methods, one file each. What several share is in `averaging`, `meta` and `keys`."""
