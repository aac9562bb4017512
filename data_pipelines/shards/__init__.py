"""Shard sets: images in webdataset tars with an index per tar and one manifest; packed, checked and read."""
