"""The demo: plays simulated traffic, ends each simulated day, watches, and tells what happened.

It decides nothing: days are sealed, policies trained, judged and rolled out by the platform, from the logs alone.
"""
