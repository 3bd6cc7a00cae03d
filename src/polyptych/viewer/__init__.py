"""A page on this machine that shows what networks say of an image."""
