"""The way from a dataset to a batch: geometry, transforms, cache, loader. The datasets themselves are in datasets/."""
