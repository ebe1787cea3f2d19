"""Safe files: errors, atomic writes, checked reading, locks, sealed folders, resumable jobs, work on a cluster."""
