"""What pruning removes, so that a budget is met at the least loss."""
