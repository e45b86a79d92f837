"""Workloads: reference experiments that read from top to bottom, one file each."""
