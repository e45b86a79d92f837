"""Weight masks: one file per rule that decides which weights may move."""
