"""Decisions without IO: events in, outputs out. No socket, clock, thread, file or random source."""
