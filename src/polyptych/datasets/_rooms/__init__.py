"""The ray caster behind the ``rooms`` dataset: scenes, visibility, labels and pictures, in numpy."""
