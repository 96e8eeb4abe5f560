"""Loading and running an artifact, and measuring it where it runs."""
