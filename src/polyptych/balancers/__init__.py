"""How are tasks weighed? One file per answer."""
