"""Configurations shipped with the package, one TOML file per data set (see `refimpl.config`)."""
