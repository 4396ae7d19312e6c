"""The same network on the same image through other tools."""
