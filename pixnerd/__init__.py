"""The scope ``pixnerd`` for mmengine, which looks for a package of its name; everything is in ``pixnerd_plugin``."""
