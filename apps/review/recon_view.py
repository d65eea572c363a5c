"""How a reconstruction came about: sampling, coils, zero-filled image, result, reference."""
from typing import Any


def recon_view(item: Any) -> None:
    """placeholder until the routes are there"""
