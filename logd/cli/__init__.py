"""The commands `logd` and `logctl`.

For: turning a command line into a call, and whatever comes of it into text and an exit code. Must not know: how
anything is done. The one idea: a command's module is imported only when that command runs, so that help and
completion answer at once.
"""
