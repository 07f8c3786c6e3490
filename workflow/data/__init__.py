"""From raw files and a contract to validated tables."""
