"""Pretrained dual towers by name (`--backbone`); a plugin adds its own with `BACKBONES.register`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.registry import Registry

if TYPE_CHECKING:
    from model.backbones.base import Backbone

BACKBONES: Registry[Backbone] = Registry("backbone", {"clip": "model.backbones.clip"})
