"""Measurements of guidance: how much fine-tuning repairs, how good edges are, what it all looks like."""
