"""Agents, imported or run by ``python -m agents.NAME``: drlih, mch, and sb3 with its parts ``sb3_*``.

They share ``training``, ``checkpoint`` and ``arguments``.
"""
