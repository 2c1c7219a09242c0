"""Many peers in one process, some of which lie: what a rule of aggregation is worth on one's own task."""
