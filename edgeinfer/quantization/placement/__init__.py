"""Which tensors get Q/DQ, by the dialect of the runtime."""
