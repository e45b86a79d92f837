"""Other wordings of one question: one file per way, and the rules that judge them."""
