"""Pruning: structured and unstructured, with layer-wise reconstruction."""
