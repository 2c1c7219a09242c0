"""Pictures and figures of a run, read from state directories; no torch."""
