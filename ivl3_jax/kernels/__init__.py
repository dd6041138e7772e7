"""Attention and cross-entropy: one seam each, several implementations, one oracle."""
