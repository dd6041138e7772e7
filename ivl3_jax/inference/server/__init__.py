"""A server that speaks OpenAI's chat protocol, and the page that it shows (extra: serve)."""
