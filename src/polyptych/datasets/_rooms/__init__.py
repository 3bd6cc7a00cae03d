"""The ray caster behind the ``rooms`` dataset: furnished rooms, visibility, labels and pictures, in numpy."""
