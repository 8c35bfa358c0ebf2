"""Score-based generative models in continuous time: training, sampling and likelihoods."""

__version__ = "0.1.0"
