"""Which study to label next."""
