"""What the dataset `prepared` is made of."""
