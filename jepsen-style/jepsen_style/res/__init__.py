"""Processor, memory and process numbers in the hands of the kit."""
