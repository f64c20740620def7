"""The masking audit: many small attacks that should agree, and what it means if they do not."""
