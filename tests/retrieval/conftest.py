"""Hypothesis examples are not timed: the first of them may compile a kernel."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
