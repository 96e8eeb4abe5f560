"""What a model will cost on a device, before it runs there; and which device it fits."""
