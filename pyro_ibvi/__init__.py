"""Implicit-bias variational inference for Pyro."""
