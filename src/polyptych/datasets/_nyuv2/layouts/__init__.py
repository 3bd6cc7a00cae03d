"""How NYUv2 lies on disk: one file for each layout."""
