"""Errors of experts."""

from __future__ import annotations

from coarse2fine.models.errors import ModelError


class ExpertError(ModelError):
    """An expert that cannot be made, does not match its model, or whose answers cannot be read."""
