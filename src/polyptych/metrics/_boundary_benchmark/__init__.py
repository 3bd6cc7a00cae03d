"""The boundary benchmark step by step: suppress, threshold, thin, match one to one, count, summarize."""
