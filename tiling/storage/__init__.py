"""Where bytes come from: files, remote objects, caches."""
