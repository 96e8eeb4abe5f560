"""Running data through a model and keeping statistics of its tensors."""
