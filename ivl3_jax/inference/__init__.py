"""Generation with a KV cache, sampling, chat."""
