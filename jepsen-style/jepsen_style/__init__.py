"""Fault injection for clusters of nomadpy: clients, faults, recorded histories, and checkers that judge them."""
