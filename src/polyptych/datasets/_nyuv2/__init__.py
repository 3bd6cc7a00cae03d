"""NYUv2: its layouts on disk, its classes, its camera, and itself in miniature."""
