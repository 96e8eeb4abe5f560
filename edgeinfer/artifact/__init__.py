"""What `compile` makes and a device loads: signature, manifest, golden inputs, payload."""
