"""What a search chooses from: the units of a captured network, policies, spaces of policies, and budgets."""
