"""Which published checkpoints can come in? One file per repository: a table of names, and what they mean here."""
