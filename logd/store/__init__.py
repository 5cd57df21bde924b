"""The node's disk: journal, segments, recovery. Synchronous; knows no event loop."""
