"""How frames of rooms with keypoints lie on disk."""
