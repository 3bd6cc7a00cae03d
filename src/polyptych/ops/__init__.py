"""Operators that layers are made of, when torch has none that is fast enough."""
