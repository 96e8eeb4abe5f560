"""What this machine is: read from files, never failing for what is absent."""
