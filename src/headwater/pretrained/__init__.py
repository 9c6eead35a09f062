"""Readers of other people's recurrent networks."""
