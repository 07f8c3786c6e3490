"""Export, serving, client and benchmark of the Triton model repository."""
