"""The speed of training, beside a plain PyTorch loop and the usual DataLoader."""
