"""What there is to choose from: the units of a captured network, policies, spaces of policies, and budgets."""
