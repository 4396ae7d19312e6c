"""What is written: pyramids, shards, whole files or none."""
