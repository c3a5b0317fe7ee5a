"""Local problems, the server's rounds, one file per method, and adaptation at a target node."""
