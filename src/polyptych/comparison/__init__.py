"""Comparing methods: a grid of networks, balancers and seeds, and one table that can be believed."""
