"""tricklab: image classification and its bag of tricks, on Hydra and PyTorch Lightning."""
