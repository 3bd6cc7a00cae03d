"""What Taskonomy looks like on disk, its Tiny split and its encodings."""
