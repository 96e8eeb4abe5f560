"""The quantizing transforms, one a file."""
