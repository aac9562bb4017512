"""From a trained adapter and a photograph to sr."""
