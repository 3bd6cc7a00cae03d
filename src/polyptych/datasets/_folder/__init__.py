"""The user's own files: their description, where they are, and how each kind of label is stored."""
