"""Agents: one readable, importable file per algorithm; each runs as `python -m agents.NAME`."""
