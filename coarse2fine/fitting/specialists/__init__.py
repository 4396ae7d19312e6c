"""How specialists are trained, and which of them are kept."""
