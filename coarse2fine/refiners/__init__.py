"""Refiners: their protocol, the built-in kinds, and a registry of others by name."""
