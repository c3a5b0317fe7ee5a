"""Configurations shipped with the package, one TOML file per data set (see `refimpl.experiments.config`)."""
