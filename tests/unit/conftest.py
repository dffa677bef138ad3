"""Properties have no deadline: how long an example takes says something of the machine's load, not of the code."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
