"""Variants of one model behind one session, of which the best that keeps the deadline runs."""
