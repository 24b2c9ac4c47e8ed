"""Canary as a state machine, its statistics, and the controller that alone writes the deployment document."""
