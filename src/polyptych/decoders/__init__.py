"""How are predictions refined by each other? One file per answer."""
