"""Safe files: errors, atomic writes, checked reading, sealed folders, resumable jobs, work on a cluster."""
