"""Datasets to train on: one file each."""
