"""Lets the tests of every part of the search import the helpers that lie here (pytest puts this folder on the path)."""
