"""Named models: cards, weights, builders and the registry."""
