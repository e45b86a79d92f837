"""Models: registered sources of models, and their form on disk."""
