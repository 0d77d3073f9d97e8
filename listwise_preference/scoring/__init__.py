"""Responses into metrics: AMBER, Object HalBench, CHAIR, MMHal-Bench, POPE, as their own programs count.

Nothing here knows of models or imports torch: ``answers`` reads and checks, one module per benchmark counts,
``result`` adds what made the numbers (protocol, versions, intervals), ``compare`` puts results side by side.
"""
