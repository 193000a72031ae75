"""The library's speed, side by side with what else one would use: ``python -m benchmarks.speed``.

Every benchmark measures its peers in turn, round by round, each in a fresh process of its own and
against one server in another, and prints medians and ratios. A time alone says more about the
machine than about a library; a ratio from one run says something about both of its sides.
"""
