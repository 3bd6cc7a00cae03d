"""What a person looks at: panels, curves, tables, and the report page of a run."""
