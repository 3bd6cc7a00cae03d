"""Protocols of published tables: which numbers may be compared, and the rows that may be listed next to a run's own."""
