"""InternViT, the projector, the decoder, and InternVL made of the three."""
