"""The MegaSR network: one figure box, one file."""
