"""Declare what a variant is: one file for each axis, one entry for each value of it. Nothing here imports torch.

This folder stands above the config, which takes its legal values from here.
"""
