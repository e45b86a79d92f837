"""The core: errors, registry, sets, run context, findings, digests, atomic files. Never imports torch."""
