"""What a backward pass needs of its forward pass, by name, so that remat policies can keep it."""

ATTENTION_RESIDUALS = (
    "attention_residuals"  # the output and its log-sum-exp: small beside what it costs to compute them again
)
# The output of a linear layer, and what is between the two matrices of its adapter. Keeping all products instead would
# keep two of the output's size where there is an adapter.
LINEAR_RESIDUALS = "linear_residuals"
