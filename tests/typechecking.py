"""The type checker that tests put behind every annotation of the package, shapes included."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for static checkers
