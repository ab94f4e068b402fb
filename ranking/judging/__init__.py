"""Whose responses are better? (§5)"""
