"""Inputs of a model, read from the many forms that people have them in."""
