"""Gin files and flags: parsing, checking, binding (`main.run_main` runs a program)."""
