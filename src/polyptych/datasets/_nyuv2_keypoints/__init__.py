"""The files of rooms with keypoints on disk."""
