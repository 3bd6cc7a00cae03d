"""One network that holds every choice: execution plans, weights, soft choices, costs, and compact networks from it."""
