"""The demo: a small InternVL3 learns to read real handwriting, in minutes, with the project's own model and trainer."""
