"""`QuantizeInt8`, and how it decides."""
