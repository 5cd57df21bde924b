"""The cluster's own state machine: command in, new state and effects out."""
