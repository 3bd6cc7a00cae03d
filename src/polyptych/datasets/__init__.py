"""Datasets to learn from: one file each."""
