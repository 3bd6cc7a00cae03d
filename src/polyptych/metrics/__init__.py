"""Streaming metrics: named sums that add up over batches and processes."""
