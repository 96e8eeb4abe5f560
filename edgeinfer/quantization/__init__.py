"""Quantization: calibrate once, emit what each runtime wants."""
