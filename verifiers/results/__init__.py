"""Certificate files: read them, and use their rows. Nothing here imports torch."""

from verifiers.results.reader import read, read_images
from verifiers.results.rows import Certificates, MethodRows

__all__ = ["Certificates", "MethodRows", "read", "read_images"]
