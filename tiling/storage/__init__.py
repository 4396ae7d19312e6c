"""Storage: files, remote objects, caches."""
