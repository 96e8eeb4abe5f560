"""Algebra in numpy: quantization parameters, ranges, histograms, rounding, closeness."""
