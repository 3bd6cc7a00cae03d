"""How are features shared? One file per answer."""
