"""Mesh axes, logical axes, and the plan that maps the second onto the first."""
