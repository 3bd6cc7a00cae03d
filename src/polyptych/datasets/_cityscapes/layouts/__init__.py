"""The layouts of Cityscapes on disk: one file each."""
