"""Data: sources of records, readers of files, and the splits that requests may name."""
