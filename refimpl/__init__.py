"""refimpl: the CPU reference implementation of MetaGater (Lin et al. 2020, arXiv 2011.12511)."""

from refimpl._version import __version__

__all__ = ["__version__"]
