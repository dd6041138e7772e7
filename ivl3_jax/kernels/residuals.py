"""What an attention kernel's backward pass needs of its forward pass, by name, so that remat policies can keep it."""

ATTENTION_RESIDUALS = (
    "attention_residuals"  # the output and its log-sum-exp: small beside what it costs to compute them again
)
