"""The fusion server: rank, feedback, arms, exposure log. Never imports torch."""
