"""Arguments, runs in processes, rows of results, methods, statistics and figures, shared by the benchmarks."""
