"""Writing of pyramids, shards and files, each complete or not at all."""
