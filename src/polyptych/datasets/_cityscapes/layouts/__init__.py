"""How Cityscapes lies on disk: one file for each layout."""
