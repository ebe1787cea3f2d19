"""What the benchmarks share: arguments, runs in processes, rows of results, methods, statistics and figures."""
