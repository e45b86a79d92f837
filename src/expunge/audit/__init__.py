"""Audits: what is left of the forgotten records, and what broke. One file per audit.

An audit never imports ``expunge.forget``: it is blind to how the model was changed.
"""
