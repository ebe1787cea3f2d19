"""Benchmarks: each runs as `python -m benchmarks.NAME` and prints what the README quotes."""
