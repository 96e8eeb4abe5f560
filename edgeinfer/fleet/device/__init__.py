"""What a device in the field runs: reading releases, trusting them, downloading them."""
