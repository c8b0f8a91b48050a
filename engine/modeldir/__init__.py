"""A model's directory in Hugging Face format: its JSON files, shape and stop tokens, without torch or transformers.

It lies below everything that reads a model: the chat format, the servers, the memory plan, the learner.
"""
