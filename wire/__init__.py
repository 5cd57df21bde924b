"""The protocol of logd and its client library."""
