"""Columns of a table and what they are read as: numbers, dates or categories, from text or from Arrow's types."""
