"""The layouts of NYUv2 on disk: one file each."""
