"""Chat templates as llama.cpp's engine runs them, and dialogues that become texts.

A template is a stranger's program: it runs in a process of its own, with limits, and can only do what llama.cpp's own
engine (common/jinja) can. Nothing here knows a vocabulary or a model.
"""
