"""The formats that images are read from."""
