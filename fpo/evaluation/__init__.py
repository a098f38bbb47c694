"""Evaluation that can be trusted: questions, answers, three kinds of judges, verdicts, capability.

A room of its own: it reads policies and answers, and knows nothing of the loop that trained them.
"""
