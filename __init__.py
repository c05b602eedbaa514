"""ComfyUI's way in: the nodes, when ComfyUI loads this folder from ``custom_nodes``; nothing to any other importer."""

import sys

# ComfyUI has its own API imported by the time it loads packs. pytest, for one, imports this file without it, and, in a
# folder whose name has a dot, as no package.
if 'comfy_api' in sys.modules and __package__:
    from .comfy_nodes import comfy_entrypoint  # noqa: F401

    WEB_DIRECTORY = './web'
