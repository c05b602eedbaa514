"""Imported by mmengine when a config or another project names ``pixnerd.PixNerdDiT``; registers every part."""

import pixnerd_plugin  # noqa: F401
