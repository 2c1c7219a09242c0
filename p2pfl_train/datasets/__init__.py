"""Private data: read by name or by path, partitioned among peers, prepared for a model."""
