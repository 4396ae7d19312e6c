"""Networks, and the interpretation of their activations; independent of files and tiles."""
