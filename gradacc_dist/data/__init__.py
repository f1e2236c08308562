"""From sources of text to micro-batches of tokens."""
