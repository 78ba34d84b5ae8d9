"""A steady load for hours, and what grows meanwhile."""
