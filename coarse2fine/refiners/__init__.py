"""What answers a closer look at windows: the protocol of it, the built-in kinds, and others by name."""
