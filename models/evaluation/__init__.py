"""How good a run is: protocols, baselines, off-policy estimates, and the report about them."""
