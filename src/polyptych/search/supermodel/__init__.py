"""The supermodel, one network that holds every choice: execution plans, weights, soft choices, costs, extraction."""
