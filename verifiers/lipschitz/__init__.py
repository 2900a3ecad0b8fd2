"""Lipschitz constants of networks, everywhere and on balls."""
