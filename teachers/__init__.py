"""Frozen networks that compute the targets of masked visual modelling."""
