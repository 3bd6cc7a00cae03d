"""Protocols of published tables: which numbers may be compared, and the rows that may stand beside a run's own."""
