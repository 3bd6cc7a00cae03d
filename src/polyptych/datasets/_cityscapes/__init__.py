"""Cityscapes: its layouts on disk, its classes, and a miniature of it."""
