"""Logs to transitions, and transitions as arrays."""
