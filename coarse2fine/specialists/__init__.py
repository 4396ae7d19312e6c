"""Small nets for kinds of cells: what they learn from, how they are trained, and which are worth it."""
