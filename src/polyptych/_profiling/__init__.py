"""How :mod:`polyptych.profile` measures: operators, structure, memory and time, each in a file of its own."""
