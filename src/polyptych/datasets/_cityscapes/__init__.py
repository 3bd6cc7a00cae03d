"""What Cityscapes looks like on disk (one file per layout) and its classes."""
