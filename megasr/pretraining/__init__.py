"""Trainings of the embedded world: autoencoder, CLIP, extractors, U-Net."""
