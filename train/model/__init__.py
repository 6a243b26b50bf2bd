"""Networks and their heads."""
