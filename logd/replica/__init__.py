"""The driver: all of a node's groups, turned into one disk round and answers. Pure."""
