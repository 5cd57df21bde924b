"""The commands `logd` and `logctl`."""
