"""What a graph must look like to be pruned, and removing channels from it."""
