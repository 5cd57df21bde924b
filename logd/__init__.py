"""The daemon of logd, a replicated, durable commit log that proves what it promised."""

__version__ = "0.1.0"
