"""Rules become one type per tensor: llama.cpp's file types as tables, and the plan of a file.

A plan is complete before a weight is read. Nothing here reads a file of a model or writes one.
"""
