"""The fleet over HTTP: what devices fetch and report, and the page of those who operate it."""
