"""What NYUv2 looks like on disk (one file per layout), its classes and its split."""
