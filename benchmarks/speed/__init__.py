"""Speed and memory beside ordinary training and other libraries: see ``run``."""
