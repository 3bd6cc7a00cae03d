"""How :mod:`polyptych.profiling` measures: operators, structure, memory and time, each in a file of its own."""
