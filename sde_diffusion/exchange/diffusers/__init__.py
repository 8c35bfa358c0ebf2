"""Weights of diffusers."""
