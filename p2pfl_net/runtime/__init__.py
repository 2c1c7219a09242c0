"""Everything with a clock, a file, a thread or a signal: it runs what the core decides."""
