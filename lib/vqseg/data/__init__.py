"""From files to batches: reading, preparing, splitting, sampling."""
