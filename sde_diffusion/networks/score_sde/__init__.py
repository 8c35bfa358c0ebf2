"""The published networks of score_sde_pytorch: DDPM++ and NCSN++."""
