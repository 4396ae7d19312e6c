"""Experts: the user's own models, run on the chosen tiles of a fixed grid."""
