"""Benchmarks: every module here runs as `python -m benchmarks.NAME`; `common` and `report` hold the shared parts."""
