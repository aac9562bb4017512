"""Degradations: parameters are drawn first, then applied, so that every lq can be made again from its parameters."""
