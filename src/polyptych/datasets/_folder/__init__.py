"""The user's own files: their description, where they lie, and how each kind of label is stored."""
