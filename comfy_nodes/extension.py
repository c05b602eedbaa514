"""The entry point that ComfyUI calls: registers the model with core's detection and lists the nodes."""

from comfy_api.latest import ComfyExtension, io

from .model import register
from .nodes import NODES


class PixNerdExtension(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    register()
    return PixNerdExtension()
