"""Training of ensemble members and quantized networks: recipes, objectives, the loop, checkpoints."""
