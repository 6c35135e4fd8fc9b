"""Measurements that the documentation quotes; each is a script with its results beside it."""
