"""Files: atomic writes and locks, strict JSON, tables."""
