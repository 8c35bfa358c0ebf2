"""Data larger than memory: files that are read by position, by several processes."""
