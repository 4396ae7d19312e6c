"""Training of specialists, and the choice of those that are kept."""
