"""The trainer of a peer: trains on private data, publishes weights, averages with what peers publish."""
