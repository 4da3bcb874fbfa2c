"""Files and processes: remote storage, leases, progress bars, worker processes, what was dropped."""
