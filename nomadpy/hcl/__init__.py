"""The configuration language: text to a syntax tree with source positions."""
