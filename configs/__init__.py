"""Recipes for training and sharding plans, as YAML files."""
