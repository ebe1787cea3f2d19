"""The papers' tables, figures and claims, from the rows of finished runs: ``python -m benchmarks.report DIR``."""
