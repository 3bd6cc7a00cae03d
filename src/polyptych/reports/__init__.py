"""Output for people: panels, curves, tables, and the report page of a run."""
