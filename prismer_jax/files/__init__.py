"""Files and processes: storage and the writer of whole files, leases and work that is shared, the progress bar."""
