"""Consensus for one group: pure, deterministic, no input or output."""
