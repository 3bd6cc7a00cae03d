"""How are tasks weighted? One file per answer. docs/balancers.md has a training loop that uses one without the rest of
Polyptych."""
