"""The pod laboratory: a train step compiled for a TPU slice without one, and what its compiled module tells."""
