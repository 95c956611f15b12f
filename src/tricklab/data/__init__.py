"""Images in memory: where they come from, how they are split, and how a batch is made ready."""

from tricklab.data.datasets import digits, fake, fashion_mnist, folder, mnist
from tricklab.data.module import ImageData

__all__ = ["ImageData", "digits", "fake", "fashion_mnist", "folder", "mnist"]
