"""Expunge: forget anything from any model, and prove it."""
