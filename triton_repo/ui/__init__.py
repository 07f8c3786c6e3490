"""`marquee ui`: a local web page over the live Triton, behind a thin gateway."""
