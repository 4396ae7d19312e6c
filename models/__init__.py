"""Networks and what their activations mean. Knows nothing of files or tiles."""
