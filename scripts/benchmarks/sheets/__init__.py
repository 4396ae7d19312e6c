"""Letters of many scripts on large sheets: found, then named."""
