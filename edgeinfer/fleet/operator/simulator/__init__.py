"""A fleet in virtual time: the real planner, store and ingest; devices and network from one seed."""
