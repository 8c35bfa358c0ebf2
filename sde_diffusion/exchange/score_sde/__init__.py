"""Weights of score_sde_pytorch."""
