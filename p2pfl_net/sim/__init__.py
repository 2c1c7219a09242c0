"""A network on a virtual clock that drives the daemon's own core: no socket, clock or thread."""
