"""Measurements of nrt beside its peers; see README.md in this folder."""
