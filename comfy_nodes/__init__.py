"""PixNerd in ComfyUI: a native model and text encoder, and the nodes around them."""

from . import library  # noqa: F401  (finds pixnerd_plugin; before everything that imports it)
from .extension import comfy_entrypoint

__all__ = ['comfy_entrypoint']
