"""Elastic layers and blocks, and the plain network that is taken out of them."""
