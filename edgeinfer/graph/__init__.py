"""Reading and running graphs: weights, constants, shapes, channels, taps."""
