"""Adapters from models of other libraries to experts; each is imported only when its prefix is named."""
