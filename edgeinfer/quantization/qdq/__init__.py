"""Writing, reading and removing Q/DQ in a graph."""
