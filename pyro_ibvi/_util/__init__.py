"""Helpers that know nothing of variational inference."""
