"""Files on disk: written whole or not at all, and read without trusting them. Nothing here knows a network."""
