"""What the operator of a fleet runs: keys, the repository, publishing."""
