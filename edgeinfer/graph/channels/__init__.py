"""Which channels of which tensors belong together."""
