"""The truth about a fleet, in SQL: SQLite for one machine, PostgreSQL beyond."""
