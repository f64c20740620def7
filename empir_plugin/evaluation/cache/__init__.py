"""The cache of finished shards: what they are stored under, and where."""
