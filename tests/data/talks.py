"""Conversations to test with."""

from ivl3_jax.data import Message, Sample

ROLES = {"s": "system", "u": "user", "a": "assistant"}


def messages(*turns):
    """Turns such as ("u", "What?")."""
    return tuple(Message(ROLES[role], text) for role, text in turns)


def sample(*turns, images=(), **fields):
    return Sample(messages(*turns), tuple(images), **fields)
