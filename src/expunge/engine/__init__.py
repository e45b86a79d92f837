"""The engine: tasks, losses, scopes, masks, the training loop, safe loading of weights."""
