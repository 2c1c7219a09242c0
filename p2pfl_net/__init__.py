"""The networking daemon of a peer: membership, serving the published model, fetching those of others."""
