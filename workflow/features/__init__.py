"""Features: NVTabular workflows built from the contract, and point-in-time histories."""
