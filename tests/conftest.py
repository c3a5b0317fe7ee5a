"""Settings for all tests."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a deadline judges how busy the machine is
settings.load_profile("untimed")
