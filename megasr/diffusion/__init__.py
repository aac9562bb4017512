"""Pure functions of the diffusion process; noise is always an argument."""
