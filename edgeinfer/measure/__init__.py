"""Measuring: latency, memory, closeness, and what really ran."""
