"""A page on this machine that shows what networks predict for an image."""
