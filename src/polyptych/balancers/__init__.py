"""How are tasks weighed? One file per answer. docs/balancers.md has a loop that uses one without the rest."""
