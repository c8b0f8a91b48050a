"""Drafts of tasks: the language in which a teacher or a person writes one, and the compiler that makes a task of it."""
