"""Ordinary learning, as settings over the one loop."""
