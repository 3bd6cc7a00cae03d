"""Cityscapes: its layouts on disk, its classes, and itself in miniature."""
