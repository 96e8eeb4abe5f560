"""Refitting layers to what the float model computes."""
