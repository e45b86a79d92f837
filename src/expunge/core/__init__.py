"""Errors, registry, sets, run context, findings, digests, atomic files; never imports torch."""
