"""Readers that turn data sets into events, and the replay that appends them to the log."""
