"""Adapters of the environments to other libraries, one module for each, which imports the library."""
