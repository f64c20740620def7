"""Quantized networks of any architecture."""
