"""The native door: the listener, its sessions and their handlers."""
