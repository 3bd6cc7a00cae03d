"""Several sets of samples in one stream: who stands where."""
