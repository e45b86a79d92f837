"""Forgetting: one file per method. The machinery is in ``method.py``."""
