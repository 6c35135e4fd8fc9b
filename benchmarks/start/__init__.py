"""Where a guide of a hand-written model starts, and how long it then trains."""
