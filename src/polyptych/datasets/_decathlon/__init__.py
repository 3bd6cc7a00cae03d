"""The ten domains of the Visual Decathlon, their annotations and their layout."""
