"""The federated methods, one file each."""
