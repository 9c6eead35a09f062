"""Headwater: recurrent networks from pre-training to the device."""
