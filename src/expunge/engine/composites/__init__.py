"""Composite models: one file per way to change what a language model says, not its weights."""
