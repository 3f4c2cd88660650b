"""Layers of the cross-modal transformer."""
