"""Identity, certificates and TLS."""
