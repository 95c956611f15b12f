"""Image data: data sets, their splits, decoding, and batches ready for the network."""
