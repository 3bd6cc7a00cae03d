"""NYUv2: its layouts on disk, its classes, its camera, and a miniature of it."""
