"""Adapters of the environments to other libraries; each module imports its library."""
