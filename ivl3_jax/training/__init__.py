"""State, optimizer, step, loop, recipes."""
