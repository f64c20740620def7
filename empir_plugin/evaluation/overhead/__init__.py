"""What a model costs: operations and bytes, EMPIR's Equation 6, and measured latency."""
