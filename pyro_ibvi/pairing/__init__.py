"""Whether a model, a guide and an optimizer belong together, and what each was trained for."""
