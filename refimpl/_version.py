"""The package's version: one place, read by the build and by every run's record."""

__version__ = "0.1.0"
