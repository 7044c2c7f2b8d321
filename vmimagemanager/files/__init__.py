"""Trees of files, and archives of them.

A tar stream is what every room here gives to the next: guests write and read it, and all formats are made of it.
"""
