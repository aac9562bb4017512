"""Training a small text-to-image prior from nothing: autoencoder, CLIP, and the U-Net that they condition."""
