"""A run's state on disk, free of any layout."""
