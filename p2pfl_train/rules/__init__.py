"""Aggregation rules: what becomes of several models, some of which may be a liar's. Pure numerics."""
