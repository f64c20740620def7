"""What a model costs: operations and bytes counted, EMPIR's Equation 6, measured latency."""
