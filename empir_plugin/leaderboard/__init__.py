"""How is it published? Entries in RobustBench's format, what they rest on, and what to send to RobustBench."""
