"""Search for what tasks share: any backbone as a space of multi-task networks, searched under a budget."""
