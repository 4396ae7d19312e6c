"""Pages of results, and the local viewer."""
